"""`python -m docs` writes `docs/ops.md`, its pictures in `docs/ops/`, and the table of names in the README."""

import pathlib

import tensorflow as tf

from bloodcell.augment import describe
from bloodcell.files import write_atomically
from docs import strips

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKS = ("<!-- ops:begin -->\n", "\n<!-- ops:end -->")


def main() -> None:
    """Writes what differs from the files there are, and removes pictures of ops that are gone."""
    folder = ROOT / "docs/ops"
    pictures = strips.render()
    for name, pixels in pictures.items():
        path = folder / f"{name}.png"
        if not path.exists() or strips.differ(tf.io.decode_png(path.read_bytes()).numpy(), pixels):
            write_atomically(path, tf.io.encode_png(pixels, compression=9).numpy())
            print(f"wrote {path.relative_to(ROOT)}")
    for path in sorted(folder.glob("*.png")):
        if path.stem not in pictures:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, rest = readme.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    for name, text in (("docs/ops.md", describe.page()),
                       ("README.md", head + MARKS[0] + describe.table() + MARKS[1] + tail)):
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != text:
            write_atomically(ROOT / name, text.encode())
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
