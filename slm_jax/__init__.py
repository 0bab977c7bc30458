"""Speech-language models on JAX: a frozen speech encoder and a frozen LLM joined by a small trained adapter."""
