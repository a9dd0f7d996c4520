"""Names and numbers of a configuration -> objects: the only place that knows both sides."""
