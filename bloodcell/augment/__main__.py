"""`python -m bloodcell.augment` prints the table of ops, as Markdown, from their entries."""

from bloodcell.augment.describe import table

if __name__ == "__main__":
    print(table())
