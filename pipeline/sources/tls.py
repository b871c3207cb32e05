"""The TLS settings: PyAV's wheels differ in their defaults, so every setting is explicit."""

from __future__ import annotations

import ssl

from pipeline.sources.options import Options


def tls_options(options: Options) -> dict[str, str]:
    """FFmpeg's options for a connection through TLS."""
    if not options.verify:
        return {"tls_verify": "0"}
    paths = ssl.get_default_verify_paths()
    ca = options.ca or paths.cafile or paths.openssl_cafile
    return {"tls_verify": "1", "ca_file": ca}
