"""Draw the README's picture from the report of a committed run.

python docs/picture.py benchmarks/FOLDER docs/cifar10.svg
"""

import sys
from pathlib import Path

from htas.report import picture, read

if __name__ == "__main__":
    folder, file = map(Path, sys.argv[1:])
    picture(read(folder), file)
