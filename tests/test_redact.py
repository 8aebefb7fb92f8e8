"""What is printed and logged holds no secrets."""

import logging

import pytest

from ddgd_ray.redact import RedactingFormatter, has_secret, redact

WORD = "-".join(["not", "for", "logs"])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://u:{}@host:5432/db", "postgresql://u:***@host:5432/db"),
        ("postgresql+psycopg2://u:{}/@x@host/db", "postgresql+psycopg2://u:***@host/db"),
        ("https://{}@host/path", "https://***@host/path"),
        ("mysql://host/db?user=u&password={}&ssl=1", "mysql://host/db?user=u&password=***&ssl=1"),
        (
            "could not reach http://u:{}@h:80/x (postgresql://a:{}@h2)",
            "could not reach http://u:***@h:80/x (postgresql://a:***@h2)",
        ),
        ("s3://KEY:{}@bucket/runs", "s3://KEY:***@bucket/runs"),
        ("https://h/p?X-Amz-Signature={}&x=1", "https://h/p?X-Amz-Signature=***&x=1"),
        ("az://c/x?sv=1&sig={}", "az://c/x?sv=1&sig=***"),
        ("export HF_TOKEN={} && true", "export HF_TOKEN=*** && true"),
        ("unrecognized arguments: --password {}", "unrecognized arguments: --password ***"),
        ("--password={}", "--password=***"),
        ("Authorization: Bearer {}", "Authorization: Bearer ***"),
    ],
)
def test_passwords_and_tokens_in_an_address_are_hidden(given: str, shown: str) -> None:
    assert redact(given.replace("{}", WORD)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/runs/mlflow.db",
        "http://127.0.0.1:5000",
        "postgresql://u@host/db",
        "a@b: c",
        "export HF_TOKEN=$MY_TOKEN",
        "key=0a1b2c tokens=4",
        "no basic training here",
    ],
)
def test_an_address_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert not has_secret(text)


def test_a_log_hides_secrets_in_tracebacks_too() -> None:
    try:
        raise ValueError(f"http://u:{WORD}@host failed")
    except ValueError as err:
        record = logging.LogRecord(
            "x", logging.ERROR, "x", 1, "at %s", (f"http://{WORD}@h",), (ValueError, err, err.__traceback__)
        )
    text = RedactingFormatter().format(record)
    assert WORD not in text
    assert "u:***@host failed" in text
