"""Where a device is, as a URL: the way git and others write it, without a password."""

from __future__ import annotations

from urllib.parse import urlsplit

from deploy.errors import ConfigError


def parse_url(url: str) -> tuple[str, str | None, int | None]:
    """Host, user and port of ``ssh://[user@]host[:port]``.

    >>> parse_url("ssh://me@board:2222")
    ('board', 'me', 2222)

    Raises:
        ConfigError: It is no such URL, or holds a password.
    """
    wanted = "give ssh://[user@]host[:port]"
    try:
        parts = urlsplit(url)
        host, user, port = parts.hostname, parts.username, parts.port
    except ValueError as error:
        raise ConfigError(f"device {url!r}: {error}; {wanted}") from None
    if parts.scheme != "ssh" or not host or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"device {url!r}: is not such a URL; {wanted}, or `local`")
    if parts.password is not None:
        raise ConfigError(
            f"device {url.replace(parts.password, '***')!r}: passwords are not used; install a key "
            f"with ssh-copy-id and {wanted}"
        )
    if host.startswith("-") or (user or "").startswith("-"):
        raise ConfigError(f"device {url!r}: a name cannot begin with '-'; {wanted}")
    return host, user, port
