"""`axpo study`: variants of training, several seeds each, from one TOML to tables and figures."""
