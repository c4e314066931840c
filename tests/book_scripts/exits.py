# ruff: noqa
import sys

sys.exit(int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1])
