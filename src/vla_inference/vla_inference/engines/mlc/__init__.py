"""`engine: mlc`: a folder compiled by mlc_llm."""
