"""The application `engines`: models behind handles. Only its replicas load model libraries."""
