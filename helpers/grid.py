"""Keeps the earlier command line `python -m helpers.grid` working; the tool is `helpers.tools.grid`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("helpers.tools.grid", run_name="__main__", alter_sys=True)
