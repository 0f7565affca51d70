"""The key that tokens are verified with: parsed when the service starts, never guessed at later.

A text that is no key that this service can verify with is refused, above all a public key in a form
that would pass for a shared secret: whoever knows it, and everybody may, could sign tokens with it.
No message shows the text.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from churn_assets.settings import SettingsError

# RFC 7518 asks for as many bytes as the hash of HS256 has.
SECRET_BYTES = 32

# A text that was drawn has more of them; one that a person repeated has fewer.
DISTINCT_CHARACTERS = 8

RSA_BITS = 2048


@dataclass(frozen=True)
class TokenKey:
    """A key, and the one algorithm that it verifies.

    By the kind of key and never by the token's header: otherwise a public key could be made to
    serve as a shared secret.
    """

    key: Any
    algorithm: str


def token_key(text: str) -> TokenKey:
    """The key of CHURN_JWT_KEY: a public key in PEM, or a shared secret.

    Raises:
        SettingsError: It is neither.
    """
    # Files of settings have a PEM in one line, with \n for its line feeds.
    lines = text.replace("\\r", "").replace("\\n", "\n").strip()
    if "-----BEGIN" in lines:
        return _public(lines)
    secret = text.strip()
    if _is_public_in_another_form(secret):
        raise _refused(
            "looks like a key in another form than PEM (Base64, JWK or SSH). Give the public key "
            "as PEM: `openssl pkey -pubin -inform DER -in key.der` writes it."
        )
    is_long = len(secret.encode()) >= SECRET_BYTES
    if not is_long or len({*secret}) < DISTINCT_CHARACTERS:
        raise _refused(
            f"is too {'regular' if is_long else 'short'} to be a secret (RFC 7518 asks for "
            f"{SECRET_BYTES} random bytes) and no PEM public key. Draw one with "
            "`openssl rand -base64 32`."
        )
    return TokenKey(text, "HS256")


def _public(pem: str) -> TokenKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if "PRIVATE KEY" in pem:
        raise _refused(
            "is a private key, which only who signs tokens should have. Give the public one: "
            "`openssl pkey -in key.pem -pubout` writes it."
        )
    if "CERTIFICATE" in pem:
        raise _refused(
            "is a certificate. Give its public key: `openssl x509 -in cert.pem -noout -pubkey` "
            "writes it."
        )
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _refused("is a PEM that cannot be read; perhaps a part of it is missing.") from None
    match key:
        case rsa.RSAPublicKey() if key.key_size >= RSA_BITS:
            return TokenKey(key, "RS256")
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return TokenKey(key, "ES256")
        case ed25519.Ed25519PublicKey():
            return TokenKey(key, "EdDSA")
    raise _refused(f"is neither RSA of at least {RSA_BITS} bits nor EC P-256 nor Ed25519.")


def _is_public_in_another_form(text: str) -> bool:
    if text.startswith(("ssh-", "ecdsa-", "---- BEGIN SSH2")):
        return True
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.keys() & {"kty", "keys"}:
            return True
    except ValueError:
        pass
    try:
        content = "".join(text.split())
        padded = content + "=" * (-len(content) % 4)
        return _is_der(base64.b64decode(padded, altchars=b"-_", validate=True)) or _is_der(
            base64.b64decode(padded, validate=True)
        )
    except (binascii.Error, ValueError):
        return False


def _is_der(content: bytes) -> bool:
    """Whether these bytes are one ASN.1 SEQUENCE, as every key in DER is: its length says so."""
    if len(content) < 2 or content[0] != 0x30:
        return False
    length, start = content[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(content[2:start], "big")
    return len(content) == start + length


def _refused(why: str) -> SettingsError:
    return SettingsError(f"CHURN_JWT_KEY {why}")
