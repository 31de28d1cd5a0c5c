"""Core: contracts and the defence itself. Needs torch, pydantic, pluggy and safetensors only."""
