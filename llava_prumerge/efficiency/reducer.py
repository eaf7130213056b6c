"""The former name of `python -m llava_prumerge.profiling.reducer`, which goes on working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("llava_prumerge.profiling.reducer", run_name="__main__", alter_sys=True)
