"""Where a text names keys, people or machines. Keys of services are told by detect-secrets' patterns; its plugins are only asked for those, nothing is verified."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from detect_secrets.plugins import aws, azure_storage_key, basic_auth, discord, github_token, gitlab_token, jwt, mailchimp
from detect_secrets.plugins import pypi_token, sendgrid, slack, square_oauth, stripe, telegram_token, twilio

MARKER = "(removed)"
"""Stands in a text for what was taken out: harmless in JSON, YAML and Markdown."""
KEY, PASSWORD, MAIL, PATH, MACHINE, NAMED = (
    "an access token or key", "a password in an address", "an e-mail address", "a local path", "an address of a machine", "a name, host or secret by its key",
)  # fmt: skip


class Span(NamedTuple):
    start: int
    end: int
    what: str


# A text may be megabytes of what a pattern begins with, so none may look far ahead from each place: what repeats without a bound ends the match, or is taken in as a whole.
# Not asked: npm's and OpenAI's plugins, which look to the end of the line from each `//` and `sk-` (`_OURS` has both); plugins that judge by entropy or by words (hashes and vocabularies look the same), and Artifactory's, which takes upper-case words for keys.
_PLUGINS = (
    aws.AWSKeyDetector, azure_storage_key.AzureStorageKeyDetector, discord.DiscordBotTokenDetector, github_token.GitHubTokenDetector,
    gitlab_token.GitLabTokenDetector, mailchimp.MailchimpDetector, pypi_token.PypiTokenDetector,
    sendgrid.SendGridDetector, slack.SlackDetector, square_oauth.SquareOAuthDetector, stripe.StripeDetector, telegram_token.TelegramBotTokenDetector,
    twilio.TwilioKeyDetector,
)  # fmt: skip
_BLOCK = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:(?:(?!-----BEGIN )[\s\S]){0,20000}?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\]*)"
# What the library has no pattern for. A prefix that stands alone, and a length that words do not have.
_OURS = (
    r"/:_authToken=\s{0,20}(?:npm_[^\s\"']{1,200}|[A-Fa-f0-9-]{36})|(?<![\w-])sk-[\w-]*T3BlbkFJ[\w-]{20,}"
    r"|hf_[A-Za-z0-9]{20,}|(?:sk|pk|rk)-(?:ant|proj|or|lf|live|test)-[\w-]{20,}|sk-[A-Za-z0-9]{32,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|glpat-[\w-]{15,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{35}|ya29\.[\w-]{20,}|npm_[0-9A-Za-z]{36}|pypi-AgE[\w-]{40,}|dckr_pat_[\w-]{20,}"
    r"|SG\.[\w-]{20,}\.[\w-]{20,}|dop_v1_[0-9a-f]{60,}|r8_[0-9A-Za-z]{30,}|nvapi-[\w-]{40,}|mp_[\w-]{43}|(?:sk|rk)_live_[0-9A-Za-z]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|hooks\.slack\.com/services/[\w/]+|(?:AccountKey|SharedAccessSignature)=[\w%+/=&-]{20,}"
)
_ASSIGNED = r"(?i:aws_secret_access_key|aws_secret)\W{1,5}([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])"
_JWT = r"(?<![\w-])eyJ[\w-]{5,}\.eyJ[\w-]{5,}(?:\.[\w-]*)?"
_ROOTS = "home|Users|root|mnt|data|tmp|var|srv|scratch|workspace|content|gpfs|nfs|lustre|media|private|kaggle|storage|fsx|raid|ssd"
_REST = r"[^\s\"'<>|,;)\]}`\x00-\x1f]"
_BEFORE = r"(?<![\w/\\.~%}$-])"
_UNIX = rf"{_BEFORE}(?:file://)?/(?:{_ROOTS})/{_REST}+|(?<![\w/\\.~])~/{_REST}+|(?<=file://)/{_REST}+"
_WINDOWS = rf"(?<![\w?])[A-Za-z]:(?:\\{{1,2}}|/(?!/))(?:[\w.$-][\w.$ -]{{0,80}}(?:\\{{1,2}}|/)){{1,40}}{_REST}*|(?<![\w\\])\\\\[\w.-]{{2,}}\\[\w.$-]{_REST}*"
_MACHINE, _NUMBERS = rf"\b(?:s3|gs|ssh|hdfs|abfss?)://{_REST}+", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}:\d{2,5}\b"
_MAIL = r"(?<![\w.+@/-])(?!git@)[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}"
_ENDS = "com|org|net|edu|gov|io|ai|dev|co|de|fr|uk|cn|jp|kr|in|ru|ch|nl|it|es|ca|au|us|eu|info|me"

_PREFIXES = (
    "_authToken", "hf_", "sk-", "pk-", "rk-", "gh", "glpat-", "xox", "AIza", "ya29.", "npm_", "pypi-", "dckr_", "SG.", "dop_", "r8_", "nvapi-", "mp_", "_live_",
    "AKIA", "ASIA", "hooks.", "AccountKey", "SharedAccess",
)  # fmt: skip


class _Sought(NamedTuple):
    """A pattern, and literals one of which stands in every match: looking for those first makes most texts cheap."""

    pattern: re.Pattern
    what: str
    literals: tuple[str, ...] = ()

    def within(self, text: str) -> Iterator[re.Match]:
        return self.pattern.finditer(text) if not self.literals or any(part in text for part in self.literals) else iter(())


_SECRET = [_Sought(p, KEY) for plugin in _PLUGINS for p in plugin.denylist]
_SECRET += [
    _Sought(re.compile(_BLOCK), "a private key", ("PRIVATE KEY",)),
    _Sought(re.compile(_OURS), KEY, _PREFIXES),
    _Sought(re.compile(_ASSIGNED), KEY),
    _Sought(re.compile(_JWT), KEY, ("eyJ",)),
    *(_Sought(p, PASSWORD, ("@",)) for p in basic_auth.BasicAuthDetector.denylist),
]
_TELLING = [
    _Sought(re.compile(_UNIX), PATH, ("~/", "file://", *(f"/{root}/" for root in _ROOTS.split("|")))),
    _Sought(re.compile(_WINDOWS), PATH, (":\\", ":/", "\\\\")),
    _Sought(re.compile(_MACHINE), MACHINE, ("://",)),
    _Sought(re.compile(_NUMBERS), MACHINE),
]
_ANY_MAIL = _Sought(re.compile(_MAIL + r"[A-Za-z]{2,24}\b"), MAIL, ("@",))
_CODE_MAIL = _Sought(re.compile(_MAIL + rf"(?:{_ENDS})\b(?![(\[.])"), MAIL, ("@",))  # `query@key.transpose(...)` is a product of matrices
_valid = jwt.JwtTokenDetector.is_formally_valid
_NAMED_KEY = re.compile(
    r"(?i)(?:^|[_.\- ])(?:user[_-]?name|author|owner|e[_-]?mail|host[_-]?name|password|passwd|secret(?:[_-]?(?:access[_-]?)?key)?|credential"
    r"|(?:access|auth|api|hf|hub|bearer|refresh)[_-]?token|api[_-]?key)s?(?:$|[_.\- ])"
)
_ASSIGNMENT = re.compile(r"(?im)^[ \t>*-]{0,8}[\"']?((?:[\w-]{1,30}[_-])?(?:password|passwd|secret|api[_-]?key|(?:access|auth|api|hf|hub)[_-]?token))[\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?([^\s\"'(){}<>,]{6,})")


def named(key: str) -> bool:
    """Whether a key says that its value names somebody or opens something. Keys of tokenizers (`bos_token`, `max_tokens`) do not."""
    return bool(_NAMED_KEY.search(key))


def _edges(text: str, start: int, end: int) -> bool:
    """Whether the match is a word of its own, not a piece of a hash or of base64."""
    return not (start and text[start].isalnum() and (text[start - 1].isalnum() or text[start - 1] in "+/_")) and not (
        end < len(text) and text[end - 1].isalnum() and (text[end].isalnum() or text[end] in "+/_"))  # fmt: skip


def secrets(text: str) -> Iterator[Span]:
    """Keys, tokens and passwords in addresses: what opens something."""
    for sought in _SECRET:
        what = sought.what
        for match in sought.within(text):
            start, end = match.span(match.lastindex or 0)
            if what == PASSWORD and match.group(match.lastindex or 0) in (MARKER, "password", "pass"):
                continue
            if what in (PASSWORD, "a private key") or _edges(text, start, end):
                if not match.group().startswith("eyJ") or _valid(".".join(match.group().split(".")[:2])):
                    yield Span(start, end, what)


def spans(text: str, code: bool = False, plain: bool = False) -> list[Span]:
    """What a text gives away, sorted, none within another.

    Args:
        code: the text is a program, in which `@` multiplies.
        plain: the text is no value of its own but lines, which may assign (`password: ...`).
    """
    found = list(secrets(text))
    for sought in (*_TELLING, _CODE_MAIL if code else _ANY_MAIL):
        found += [Span(*m.span(), sought.what) for m in sought.within(text)]
    if plain and not code:
        found += [Span(*m.span(2), NAMED) for m in _ASSIGNMENT.finditer(text) if m.group(2) != MARKER]
    return disjoint(found)


def disjoint(found: list[Span]) -> list[Span]:
    """Overlapping ones joined under the name of the first."""
    out: list[Span] = []
    for span in sorted(found):
        if out and span.start < out[-1].end:
            out[-1] = Span(out[-1].start, max(out[-1].end, span.end), out[-1].what)
        else:
            out.append(span)
    return out


def without(text: str, found: list[Span]) -> str:
    parts, at = [], 0
    for span in found:
        parts += [text[at : span.start], MARKER]
        at = span.end
    return "".join([*parts, text[at:]])


def masked(secret: str) -> str:
    """Its first two characters where it is long enough, and its length."""
    return f"{ascii(secret[:2])[1:-1] if len(secret) >= 16 else ''}... ({len(secret)} characters)"
