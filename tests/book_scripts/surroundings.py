# ruff: noqa
import os
import pickle
import sys


class Mine:
    pass


print(__name__, sys.argv[1:])
assert sys.path[0] == os.path.dirname(__file__)
assert os.path.isabs(__file__)
assert type(pickle.loads(pickle.dumps(Mine()))) is Mine
