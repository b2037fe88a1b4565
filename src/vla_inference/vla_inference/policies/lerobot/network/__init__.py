"""Parts of networks that several families have: attention with a cache, SigLIP."""
