"""What the README promises about itself: two commands, a table of names from the registry, no figure left open."""

import pathlib
import re

from bloodcell.augment import describe

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ops_table_is_the_registrys():
    table = README.split("<!-- ops:begin -->")[1].split("<!-- ops:end -->")[0].strip()
    assert table == describe.table(), "run: python -m docs"


def test_the_first_screen_has_a_picture_and_exactly_two_commands():
    first_screen = README.split("\n## ")[0:3]
    text = "\n## ".join(first_screen)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).exists()
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(commands) == 2
    assert "python main.py --flagfile=flags/v2s.cfg" in commands[0]
    assert "pytest" in commands[1]
    assert all(".venv" in command for command in commands)


def test_no_figure_is_left_open():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("flags/**/*.cfg")]:
        assert "RESULT_PENDING" not in path.read_text(encoding="utf-8"), path.name
