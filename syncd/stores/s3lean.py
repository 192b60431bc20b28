"""The requests of S3 that syncd makes, without the SDK: what they cost is what the bytes cost.

Operations, parameters and answers have the names of the SDK, which takes over wherever something
is not understood here: see :class:`syncd.stores.s3.S3Store`. Both give the same results
(``tests/stores/test_conformance.py`` runs each way).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from syncd.stores.exchange import Exchange, Request, is_fine
from syncd.stores.http1 import Answer, Strange, request_head
from syncd.stores.s3sign import UNSIGNED, Signer
from syncd.stores.wire import checked_key

_REDIRECTS = (301, 302, 303, 307, 308)
_ELSEWHERE = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
"""What Amazon says of a bucket in another region than the one that was asked."""

_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

_SIGNED = 1024 * 1024
"""Bytes of the largest body that is hashed for its signature where there is no TLS."""


class Refused(Exception):
    """The store's refusal, in the form of the SDK's ClientError; its text is not repeated."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        code, message = _reason(body)
        self.response: dict[str, dict[str, Any]] = {
            "Error": {"Code": code or str(status), "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": dict(headers)},
        }
        super().__init__(f"{code or status}")


def _reason(body: bytes) -> tuple[str, str]:
    try:
        root = _root(body)
    except Strange:
        return "", ""
    return root.findtext("Code") or "", root.findtext("Message") or ""


def _root(body: bytes) -> ElementTree.Element:
    """An XML document, its names without their namespace; Strange if it is none."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat itself bounds what it expands
    except ElementTree.ParseError:
        raise Strange("the answer is no XML") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _texts(element: ElementTree.Element) -> dict[str, Any]:
    """The children of an element that hold text, by the SDK's names and types."""
    found: dict[str, Any] = {child.tag: child.text or "" for child in element if not len(child)}
    for name in ("Size", "PartNumber", "NextPartNumberMarker"):
        if name in found:
            found[name] = int(found[name])
    for name in ("LastModified", "Initiated"):
        if name in found:
            found[name] = _iso_date(found[name])
    if "IsTruncated" in found:
        found["IsTruncated"] = found["IsTruncated"] == "true"
    return found


class _Operation(NamedTuple):
    method: str
    query: Mapping[str, str] = {}
    inner: str = ""
    """Element of the answer that repeats."""
    named: str = ""
    """Name of the SDK for the answer, or for what repeats in it."""


_LIST = {"list-type": "2", "encoding-type": "url"}
_OPERATIONS = {
    "put_object": _Operation("PUT"),
    "upload_part": _Operation("PUT"),
    "get_object": _Operation("GET"),
    "head_object": _Operation("HEAD"),
    "delete_object": _Operation("DELETE"),
    "delete_objects": _Operation("POST", {"delete": ""}, "Error", "Errors"),
    "copy_object": _Operation("PUT", {}, "", "CopyObjectResult"),
    "upload_part_copy": _Operation("PUT", {}, "", "CopyPartResult"),
    "create_multipart_upload": _Operation("POST", {"uploads": ""}),
    "complete_multipart_upload": _Operation("POST"),
    "abort_multipart_upload": _Operation("DELETE"),
    "list_parts": _Operation("GET", {}, "Part", "Parts"),
    "list_objects_v2": _Operation("GET", _LIST, "Contents", "Contents"),
    "list_multipart_uploads": _Operation(
        "GET", {"uploads": "", "encoding-type": "url"}, "Upload", "Uploads"
    ),
}
_QUERY = {
    "Prefix": "prefix",
    "MaxKeys": "max-keys",
    "ContinuationToken": "continuation-token",
    "UploadId": "uploadId",
    "PartNumber": "partNumber",
    "PartNumberMarker": "part-number-marker",
    "KeyMarker": "key-marker",
    "UploadIdMarker": "upload-id-marker",
}
_HEADERS = {
    "Range": "range",
    "IfMatch": "if-match",
    "IfNoneMatch": "if-none-match",
    "ContentMD5": "content-md5",
    "ChecksumCRC32": "x-amz-checksum-crc32",
    "ChecksumAlgorithm": "x-amz-checksum-algorithm",
    "CopySourceRange": "x-amz-copy-source-range",
    "CopySourceIfMatch": "x-amz-copy-source-if-match",
}
_ANSWERED = {
    "etag": "ETag",
    "x-amz-checksum-crc32": "ChecksumCRC32",
    "x-amz-server-side-encryption": "ServerSideEncryption",
}


class Lean:
    """Speaks to one bucket over kept-alive connections."""

    def __init__(self, exchange: Exchange, signer: Signer, base: str, tls: bool) -> None:
        """``base`` is the path of the bucket, escaped by nobody yet, without a slash at its end.

        A large body is not hashed once more for its signature: its checksum is in a signed header,
        over TLS nobody can change either, and a restore proves it by its SHA-256, which is in the
        commit record: that is small, and signed.
        """
        self._exchange = exchange
        self._signer = signer
        self._base = base
        self._tls = tls

    def can(self, operation: str, parameters: Mapping[str, Any]) -> bool:
        """Whether this request is understood here."""
        known = {*_QUERY, *_HEADERS, "Key", "Body", "CopySource", "MultipartUpload", "Delete"}
        return operation in _OPERATIONS and parameters.keys() <= known

    def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Make a request. Refused, OSError, or Strange where only the SDK knows what to do."""
        request = self._request(operation, parameters)
        if operation != "get_object":
            has_body = _OPERATIONS[operation].method != "HEAD"
            return _judge(operation, *self._exchange.make(request, has_body))
        answer, body = self._exchange.stream(request)
        if isinstance(body, bytes):
            return _judge(operation, answer, body)
        try:
            found = _understand(operation, answer, b"")
        except BaseException:
            body.close()
            raise
        return {**found, "ContentLength": body.length, "Body": body}

    def each(
        self, operation: str, requests: Iterable[Mapping[str, Any]]
    ) -> Iterator[dict[str, Any] | Exception]:
        """Make many requests, many in flight; what became of each, in their order.

        The content of an object comes whole, as ``Data``.
        """
        wanted = (partial(self._request, operation, parameters) for parameters in requests)
        for outcome in self._exchange.each(wanted):
            if isinstance(outcome, Exception):
                yield outcome
                continue
            try:
                yield _judge(operation, *outcome)
            except (Refused, Strange) as error:
                yield error

    def _request(self, operation: str, parameters: Mapping[str, Any]) -> Request:
        method, query, *_ = _OPERATIONS[operation]
        asked = dict(query)
        headers = {}
        for name, value in parameters.items():
            if name in _QUERY:
                asked[_QUERY[name]] = str(value)
            elif name in _HEADERS:
                headers[_HEADERS[name]] = value
        source = parameters.get("CopySource")
        if source:
            headers["x-amz-copy-source"] = quote(f"{source['Bucket']}/{source['Key']}", safe="/~")
        body = parameters.get("Body", b"")
        if "MultipartUpload" in parameters:
            body = _parts_document(parameters["MultipartUpload"]["Parts"])
        elif "Delete" in parameters:
            body = _delete_document(parameters["Delete"]["Objects"])
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            headers["content-md5"] = base64.b64encode(digest).decode()
        if "Body" in parameters and (self._tls or len(body) > _SIGNED):
            payload = UNSIGNED
        else:
            payload = hashlib.sha256(body).hexdigest()
        key = parameters.get("Key")
        path = self._base or "/" if key is None else f"{self._base}/{checked_key(key)}"
        target, signed = self._signer.sign(method, path, asked, headers, payload)
        signed["user-agent"] = "syncd"
        if method in ("PUT", "POST"):
            signed["content-length"] = str(len(body))
        return request_head(method, target, signed), body

    def close(self) -> None:
        """Let go of the connections."""
        self._exchange.close()


def _judge(operation: str, answer: Answer, body: bytes) -> dict[str, Any]:
    """What the answer says; Refused, or Strange where only the SDK knows what to do."""
    if answer.status in _REDIRECTS:
        raise Strange("the store is elsewhere")
    if not is_fine(answer):
        refused = Refused(answer.status, answer.headers, body)
        if refused.response["Error"]["Code"] in _ELSEWHERE:
            raise Strange("the store is in another region, which the SDK finds")
        raise refused
    return _understand(operation, answer, body)


def _understand(operation: str, answer: Answer, body: bytes) -> dict[str, Any]:
    """The answer as the SDK would give it."""
    headers = answer.headers
    found: dict[str, Any] = {
        "ResponseMetadata": {"HTTPStatusCode": answer.status, "HTTPHeaders": headers}
    }
    for header, name in _ANSWERED.items():
        if header in headers:
            found[name] = headers[header]
    if operation in ("put_object", "upload_part", "head_object", "get_object"):
        if "etag" not in headers:
            raise Strange("an object without ETag")
        if operation in ("head_object", "get_object"):
            found["ContentLength"] = int(headers.get("content-length", "0"))
            found["LastModified"] = _http_date(headers.get("last-modified", ""))
            found["Data"] = body
        return found
    if answer.status == 204 or not body:
        return found
    root = _root(body)
    if root.tag == "Error":  # told after the head of the answer was sent
        raise Refused(500, headers, body)
    _, _, inner, named = _OPERATIONS[operation]
    texts = _texts(root)
    if inner:
        items = [_texts(item) for item in root.findall(inner)]
        if texts.get("EncodingType") == "url":
            for item in items:
                item["Key"] = unquote_plus(item["Key"])
            if "NextKeyMarker" in texts:
                texts["NextKeyMarker"] = unquote_plus(texts["NextKeyMarker"])
        return {**found, **texts, **({named: items} if items else {})}
    return {**found, named: texts} if named else {**found, **texts}


def _iso_date(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise Strange("a time of another form") from None


def _http_date(text: str) -> datetime.datetime:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text)
    except ValueError:
        raise Strange("an object without a date") from None


def can_be_in_xml(text: str) -> bool:
    """Whether XML 1.0 can hold it at all: of the control characters it knows but three."""
    return not _NOT_IN_XML.search(text)


def escape(text: str) -> str:
    """Text as the content of an XML element."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _parts_document(parts: Iterable[Mapping[str, Any]]) -> bytes:
    inner = "".join(
        "<Part>" + "".join(f"<{k}>{escape(str(v))}</{k}>" for k, v in part.items()) + "</Part>"
        for part in parts
    )
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{space}">{inner}</CompleteMultipartUpload>'.encode()


def _delete_document(objects: Iterable[Mapping[str, str]]) -> bytes:
    keys = (escape(item["Key"]).replace("\r", "&#xD;").replace("\n", "&#xA;") for item in objects)
    inner = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete><Quiet>true</Quiet>{inner}</Delete>".encode()
