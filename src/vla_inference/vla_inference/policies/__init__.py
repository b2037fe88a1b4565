"""Policy families, and the meaning of their actions."""
