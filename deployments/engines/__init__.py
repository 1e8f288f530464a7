"""The application `engines`: models behind deployment handles. Importing it costs nothing; only its replicas load a model library."""
