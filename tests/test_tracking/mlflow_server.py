"""MLflow's own server application on 127.0.0.1, without the processes that `mlflow server` adds: DATABASE FILES PORT."""

import os
import sys

if __name__ == "__main__":
    database, files, port = sys.argv[1:]
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"file://{files}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    from mlflow.server import app
    from werkzeug.serving import make_server

    make_server("127.0.0.1", int(port), app, threaded=True).serve_forever()
