"""`engine: tvm`: the language model compiled by TVM."""
