# atheris is not among the test requirements; --doctest-modules would import the targets.
collect_ignore_glob = ["fuzz_*.py"]
