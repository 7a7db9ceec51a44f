"""``deeprank-serve``: serve an index over HTTP to programs and browsers."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cli import (
    DeviceOption,
    MaxPixelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    guarded,
    note,
)
from ..console import DEFAULT_INDEX, INDEX_VARIABLE, OTHER_NAMES_OF_INDEX, note_dark_on_light, terminal_width
from ..devices import return_large_blocks
from ..errors import MissingExtraError
from ..images import DEFAULT_MAX_PIXELS
from ..index.location import StoreOptions, read_location
from ..text import display_path, printable
from .access.addresses import is_local
from .settings import (
    DEFAULT_MAX_UPLOAD,
    DEFAULT_PORT,
    DEFAULT_RENDITION_CACHE,
    DEFAULT_WAITING,
    LOG,
    ServeSettings,
)
from .tokens import is_private, read_token

if TYPE_CHECKING:
    from .server import Start

app = application(
    "Serve an index over HTTP: a JSON API (/docs describes it), and a page for searching by picture (/).",
    [
        "deeprank-serve",
        "deeprank-serve --index my.index --port 9000",
        "deeprank-serve --index milvus://store:19530/photos",
        "deeprank-serve --host 0.0.0.0 --token-file token --sign-in-link",
        "deeprank-serve --host 0.0.0.0 --allowed-host photos.example --token-file token",
        "deeprank-serve --token-file token --allow-writes",
        "curl -F image=@photo.jpg 'http://127.0.0.1:8000/v1/search?k=5'",
        'curl -H "Authorization: Bearer $(cat token)" -F image=@new.jpg \\\n'
        "    'http://127.0.0.1:8000/v1/items?label=cat'",
    ],
    {
        **dict.fromkeys(("--bind", "--address", "--listen", "-b"), "--host"),
        "-p": "--port",
        **dict.fromkeys(("--link", "--qr", "--qr-code", "--login-link", "--magic-link"), "--sign-in-link"),
        **dict.fromkeys(("--token", "--password", "--api-key", "--auth"), "pass the token in a file: --token-file"),
        **dict.fromkeys(("--writable", "--write", "--allow-write"), "--allow-writes"),
        **OTHER_NAMES_OF_INDEX,
        **dict.fromkeys(("--workers", "-j", "--jobs", "--num-threads"), "--threads"),
        **dict.fromkeys(("--thumbnail-cache", "--cache", "--cache-size"), "--rendition-cache"),
        **dict.fromkeys(("--allow-originals", "--allow-downloads", "--downloads"), "--originals"),
        **dict.fromkeys(("--hostname", "--allowed-hosts", "--server-name"), "--allowed-host"),
        **dict.fromkeys(("--access-log", "--log"), "--log-requests"),
        **dict.fromkeys(("--ssl", "--tls", "--ssl-certfile", "--cert"), "put a proxy with TLS in front of it"),
        **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
        "--cpu": "--device cpu",
        "--weights": "--model",
        **dict.fromkeys(("--source", "--root"), "--pictures"),
    },
)


@app.command()
@guarded
def serve_command(
    index: Annotated[
        str,
        typer.Option(
            "--index",
            envvar=INDEX_VARIABLE,
            metavar="DIR|ADDRESS",
            help="The index folder, or milvus://HOST:PORT/NAME.",
        ),
    ] = str(DEFAULT_INDEX),
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen on. An address that other machines can reach needs --token-file."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = DEFAULT_PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Require the bearer token in FILE (Authorization: Bearer TOKEN) for pictures and the index. The page "
            "asks for it once.",
        ),
    ] = None,
    sign_in_link: Annotated[
        bool,
        typer.Option(
            "--sign-in-link",
            help="Print a link, and on a terminal its QR code, that signs in one browser within five minutes; a page "
            "that is signed in makes more of them (Add a device). Needs --token-file.",
        ),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without a token: everyone can see the pictures.")
    ] = False,
    allow_writes: Annotated[
        bool,
        typer.Option(
            "--allow-writes",
            help="Allow adding (POST /v1/items), removing (DELETE) and rating (/rate) pictures; needs --token-file.",
        ),
    ] = False,
    originals: Annotated[
        bool,
        typer.Option("--originals", help="Let clients download the files themselves, with all their metadata."),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="A host name or address that clients use, besides localhost, 127.0.0.1 and [::1]; may be given "
            "several times.",
        ),
    ] = None,
    batch_wait: Annotated[
        float,
        typer.Option(
            "--batch-wait",
            metavar="MS",
            min=0,
            max=1000,
            help="Longest wait of a picture for its batch, in milliseconds; a single picture does not wait.",
        ),
    ] = 3.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=256, help="Pictures per batch; 1: embed each separately.")
    ] = 16,
    max_waiting: Annotated[
        int,
        typer.Option("--max-waiting", metavar="N", min=1, help="Largest number of requests at once; others get 503."),
    ] = DEFAULT_WAITING,
    max_upload: Annotated[
        int, typer.Option("--max-upload", metavar="BYTES", min=1000, help="Largest request in bytes.")
    ] = DEFAULT_MAX_UPLOAD,
    rendition_cache: Annotated[
        int,
        typer.Option(
            "--rendition-cache",
            metavar="BYTES",
            min=0,
            help="Memory for copies of pictures that were shown, in bytes.",
        ),
    ] = DEFAULT_RENDITION_CACHE,
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    max_decoding: Annotated[
        int | None,
        typer.Option(
            "--max-decoding",
            metavar="BYTES",
            min=100_000_000,
            help="Memory limit for decoding an upload, in bytes, the upload included. Default: 512 million; it grows "
            "in proportion to --max-pixels.",
        ),
    ] = None,
    decoders: Annotated[
        int | None,
        typer.Option(
            "--decoders",
            metavar="N",
            min=2,
            help="Processes that decode pictures. Default: the number of cores, at least 2.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE",
            help="With a store: the model of its vectors. Default: ./model.onnx, else the bundled one.",
        ),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(
            "--pictures",
            metavar="DIR|URI",
            help="With a store: where the pictures' files are now. Default: where they were loaded from.",
        ),
    ] = None,
    store_token_file: Annotated[
        Path | None,
        typer.Option(
            "--store-token-file",
            metavar="FILE",
            help="Holds the password of USER in milvus://USER@HOST/NAME, or a token. Default: "
            "$DEEPRANK_STORE_TOKEN_FILE.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log each request on stderr.")] = False,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Answer until Ctrl-C or SIGTERM; requests in flight are finished then."""
    settings = ServeSettings(
        index=read_location(index),
        store=StoreOptions(model, pictures, store_token_file),
        host=host,
        port=port,
        token=None if token_file is None else read_token(token_file),
        insecure=insecure,
        sign_in_link=sign_in_link,
        allow_writes=allow_writes,
        originals=originals,
        allowed_hosts=tuple(allowed_host or ()),
        batch_wait_s=batch_wait / 1000,
        batch_size=batch_size,
        most_waiting=max_waiting,
        max_upload=max_upload,
        rendition_cache=rendition_cache,
        max_pixels=max_pixels,
        max_decoding=max_decoding,
        decoders=decoders,
        device=device,
        threads=threads,
    )
    settings.check()
    _warn(settings, token_file)
    _run(settings, log_requests=log_requests)


def _warn(settings: ServeSettings, token_file: Path | None) -> None:
    # systemd protects the credentials of a service by other means than the file mode.
    given = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
    if token_file is not None and given not in token_file.parents and not is_private(token_file):
        note(f"warning: other users can read {display_path(token_file)}; make it private with chmod 600.")
    if not is_local(settings.host):
        note("warning: HTTP is not encrypted; put a proxy with TLS in front of it (docs/deploy/).")


def _run(settings: ServeSettings, *, log_requests: bool) -> None:
    try:
        from .server import listen, serve
    except ImportError:
        raise MissingExtraError("deeprank-serve", "serve") from None
    return_large_blocks(decodes=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    warnings.filterwarnings("ignore", module=r"PIL\.")

    def tell(start: Start) -> None:
        _tell(start, settings)
        LOG.info("%s", settings.decoding_sentence())

    with listen(settings) as listening:
        serve(settings, listening, tell, log_requests=log_requests)


def _tell(start: Start, settings: ServeSettings) -> None:
    """Say where the page is, and how to sign in; the link is never logged."""
    note(f"Serving {start.items:,} picture{'' if start.items == 1 else 's'} at {start.url} (Ctrl-C ends it).")
    if start.others:
        names = "" if settings.allowed_hosts else "; another name or address needs --allowed-host"
        note(f"On other machines: {' or '.join(start.others)}{names}")
    if start.link is not None:
        where = ", on this machine" if start.link.local else ""
        note(f"To sign in once, within five minutes{where}: {start.link.url}")
        if terminal_width(sys.stderr) is not None:
            from .access.qr_code import qr_lines

            note_dark_on_light(qr_lines(start.link.url))


class _Plain(logging.Formatter):
    """Escapes untrusted text, so that it cannot forge log lines or control a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging gives it
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name that logging gives it
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).splitlines())


def main() -> None:
    """Run the command."""
    app()
