"""The processes of a real Milvus server for tests, see ``milvus_server.py``; they import little, to start soon.

``relay`` takes what comes to a free port of 127.0.0.1 outside the namespace, whose socket it inherits; ``serve``
becomes the server.
"""

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_REAL_PORT = 19530


async def _relay(listening: socket.socket) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while part := await reader.read(1 << 18):
                writer.write(part)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside, outside = await asyncio.open_connection("127.0.0.1", _REAL_PORT)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, outside), pass_on(inside, writer))

    server = await asyncio.start_server(serve, sock=listening)
    Path("relay").touch()
    await server.serve_forever()


def _become_the_server(programs: str, folder: str, settings: Sequence[str]) -> None:
    """Write the configuration, and become the server, so that the one process can be killed."""
    import milvus

    Path(programs).mkdir(exist_ok=True)
    with Path(programs, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        milvus._initialize_data_files(programs)
    Path(folder).mkdir(exist_ok=True)
    if not Path(folder, "bin").exists():
        Path(folder, "bin").symlink_to(Path(programs, "bin"))
    server = milvus.MilvusServer(data_dir=folder)
    for setting in settings:
        name, _, value = setting.partition("=")
        server.config.set(
            name, value == "True" if value in ("True", "False") else int(value) if value.isdigit() else value
        )
    server.config.base_data_dir = folder
    configuration = Path(folder, "configs", "milvus.yaml")
    if not configuration.exists():  # else it would avoid the ports of the server just killed
        server.config.resolve()
        # A server that was killed is waited for so many seconds before its collections are loaded again.
        text = configuration.read_text()
        assert text.count("ttl: 30 ") == 1
        configuration.write_text(text.replace("ttl: 30 ", "ttl: 10 "))
    program = server.get_milvus_executable_path()
    os.chdir(server.config.base_data_dir)
    within = {"DEPLOY_MODE": "STANDALONE", "METRICS_PORT": "9091", "MILVUS_RUN_DIR": f"{folder}/run"}
    os.execve(
        program, [program, "run", "standalone"], {**os.environ, **within, "LD_LIBRARY_PATH": str(Path(program).parent)}
    )


if __name__ == "__main__":
    if sys.argv[1] == "relay":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        asyncio.run(_relay(socket.socket(fileno=int(sys.argv[2]))))
    else:
        _become_the_server(*sys.argv[2:4], sys.argv[4:])
