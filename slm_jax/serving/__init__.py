"""What answers over HTTP: batches of many clients' queries, and OpenAI's formats around them."""
