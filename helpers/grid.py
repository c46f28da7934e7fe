"""`python -m helpers.grid`: the earlier name of `helpers.tools.grid`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("helpers.tools.grid", run_name="__main__", alter_sys=True)
