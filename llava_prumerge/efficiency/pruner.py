"""The former name of `python -m llava_prumerge.profiling.pruner`, which goes on working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("llava_prumerge.profiling.pruner", run_name="__main__", alter_sys=True)
