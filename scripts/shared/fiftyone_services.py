"""Start FiftyOne's database and App apart from the user's own, and see that they answer.

FiftyOne must be installed; it is imported by the functions that need it (2 to 6 s).
"""

import atexit
import http.client
import json
import os
import site
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from scripts.shared.fiftyone_rows import CheckFailed
from utils.errors import one_line

HOST = "127.0.0.1"


def private_environment(folder: str) -> dict[str, str]:
    """Return our environment with `folder` as home and without the user's FiftyOne settings."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith("FIFTYONE_")}
    return ours | {
        "HOME": folder,  # ~/.fiftyone, ~/fiftyone
        "PYTHONUSERBASE": site.getuserbase(),  # packages are found as before
        "MPLCONFIGDIR": folder,
        "TMPDIR": folder,
        "FIFTYONE_DO_NOT_TRACK": "true",  # the App's page would ask two trackers
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "no_proxy": HOST,  # a proxy does not know this machine's own ports
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _find_mongod() -> str:
    """Return the path of FiftyOne's mongod, after running it once.

    FiftyOne itself waits 60 s for a mongod that cannot run, and does not say why.

    Raises:
        CheckFailed: there is none that runs.
    """
    from fiftyone.core.service import DatabaseService, ServiceExecutableNotFound

    try:
        mongod = DatabaseService.find_mongod()
        subprocess.run(
            [mongod, "--version"], check=True, capture_output=True, text=True, timeout=30
        )
    except subprocess.CalledProcessError as error:
        words = one_line(ValueError(error.stderr))
        raise CheckFailed(f"{mongod} does not run: {words}") from error
    except (ServiceExecutableNotFound, OSError, subprocess.TimeoutExpired) as error:
        raise CheckFailed(f"no mongod runs: {one_line(error)}") from error
    return mongod


def start_database(folder: Path) -> str:
    """Start a mongod in `folder`, make it FiftyOne's database and return its version.

    It is killed when this process ends.

    Raises:
        CheckFailed: no mongod runs.
    """
    import fiftyone as fo
    import pymongo

    mongod, port = _find_mongod(), _free_port()
    (folder / "database").mkdir()
    place = ["--dbpath", str(folder / "database"), "--logpath", str(folder / "mongod.log")]
    # Without --nounixsocket a killed mongod leaves its socket in the system's temporary folder.
    server = subprocess.Popen(
        [mongod, *place, "--bind_ip", HOST, "--port", str(port), "--nounixsocket"]
    )
    # Not a `with` block: FiftyOne asks the database once more when Python exits. What is registered
    # first runs last, and the connection that makes FiftyOne register is made later.
    atexit.register(server.wait)
    atexit.register(server.kill)  # nobody will read these files again
    # The default of 30 s is how long the App's server, stopped while it starts, looks for a mongod
    # that is gone. The App's server takes the address from the environment.
    fo.config.database_uri = f"mongodb://{HOST}:{port}/?serverSelectionTimeoutMS=3000"
    os.environ["FIFTYONE_DATABASE_URI"] = fo.config.database_uri
    client = pymongo.MongoClient(fo.config.database_uri)
    while server.poll() is None:
        with suppress(pymongo.errors.ConnectionFailure):
            version = client.server_info()["version"]
            client.close()
            return f"mongod {version} from {mongod}"
    raise CheckFailed(f"{mongod} started and ended with exit code {server.returncode}")


def _app_version(port: int) -> str:
    """Return the version that the App names, as soon as it answers."""
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/fiftyone")
            response = connection.getresponse()
            if response.status == 200:
                return json.loads(response.read())["version"]
        connection.close()
        time.sleep(0.2)


def try_app() -> str:
    """Start the App without a browser, wait for its answer, close it and return its version.

    Raises:
        CheckFailed: it does not start, or cannot be closed.
    """
    import fiftyone as fo
    import psutil
    from fiftyone.core.service import ServiceException

    me = psutil.Process()
    before = set(me.children(recursive=True))
    port = _free_port()
    try:
        session = fo.launch_app(remote=True, address=HOST, port=port)
    except ServiceException as error:
        raise CheckFailed(f"the App's server does not start: {one_line(error)}") from error
    version = _app_version(port)
    servers = set(me.children(recursive=True)) - before
    session.close()
    left = psutil.wait_procs(servers, timeout=20)[1]
    for process in left:
        process.kill()
    if left:
        raise CheckFailed(f"the App answered, but {len(left)} of its processes had to be killed")
    return f"the App {version} answered on {HOST}:{port} and was closed"
