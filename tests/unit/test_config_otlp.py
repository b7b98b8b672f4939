"""``OTEL_*`` variables under the configuration."""

import pytest

from exporter.config.otlp import OtlpEnvironment, make_otlp_config, settings_from_environment
from exporter.config.types import OtlpConfig

PREFIX = "OTEL_EXPORTER_OTLP_"


def merged(document: dict[str, object], **env: str) -> OtlpConfig:
    """The configuration over variables, written without their prefix."""
    environment = settings_from_environment({PREFIX + name: value for name, value in env.items()})
    assert not environment.warnings
    return make_otlp_config(document, environment)


def test_nothing_said_is_the_default() -> None:
    """An empty variable is as if it were not set."""
    assert merged({}) == merged({}, ENDPOINT="", HEADERS=" ") == OtlpConfig()
    assert settings_from_environment({}) == OtlpEnvironment()


def test_every_general_setting_is_read() -> None:
    """Each variable, in its unit."""
    config = merged(
        {},
        ENDPOINT="https://c:4317",
        PROTOCOL="grpc",
        HEADERS="authorization=Bearer%20x%2Cy, tenant = 7 ,",
        TIMEOUT="2500",
        COMPRESSION="none",
        CERTIFICATE="/ca.pem",
        CLIENT_CERTIFICATE="/c.pem",
        CLIENT_KEY="/k.pem",
        INSECURE="TRUE",
        METRICS_TEMPORALITY_PREFERENCE="Delta",
    )
    assert config == OtlpConfig(
        endpoint="https://c:4317",
        protocol="grpc",
        headers={"authorization": "Bearer x,y", "tenant": "7"},
        timeout_s=2.5,
        compression="none",
        ca_file="/ca.pem",
        cert_file="/c.pem",
        key_file="/k.pem",
        insecure=True,
        temporality="delta",
    )


def test_a_signals_own_variables_come_before_the_general_ones() -> None:
    """Headers are replaced, not added to; its endpoint is whole."""
    config = merged(
        {},
        ENDPOINT="http://c:4318",
        HEADERS="a=1",
        METRICS_ENDPOINT="http://m/write",
        METRICS_HEADERS="b=2",
        LOGS_TIMEOUT="50",
    )
    metrics, logs = config.of_signal("metrics"), config.of_signal("logs")
    assert (metrics.endpoint, metrics.endpoint_is_whole, metrics.headers) == ("http://m/write", True, {"b": "2"})
    assert (logs.endpoint, logs.endpoint_is_whole, logs.headers) == ("http://c:4318", False, {"a": "1"})
    assert (metrics.timeout_s, logs.timeout_s) == (10.0, 0.05)
    assert metrics.of_signal("metrics") == metrics


def test_endpoint_of_a_signal_is_used_as_it_is_and_the_general_one_gets_a_path() -> None:
    """Over HTTP."""
    from exporter.export.sender import OtlpSender

    config = merged({}, ENDPOINT="http://c:4318/base", METRICS_ENDPOINT="http://m:1/write", LOGS_ENDPOINT="http://l:2")
    assert OtlpSender(config, "metrics").url == "http://m:1/write"
    assert OtlpSender(config, "logs").url == "http://l:2/"
    assert OtlpSender(merged({}, ENDPOINT="http://c:4318/base"), "logs").url == "http://c:4318/base/v1/logs"


@pytest.mark.parametrize(
    ("document", "env", "metrics", "logs"),
    [
        ({"endpoint": "http://y"}, {"ENDPOINT": "http://e"}, "http://y", "http://y"),
        ({"endpoint": "http://y"}, {"METRICS_ENDPOINT": "http://m"}, "http://y", "http://y"),
        ({"metrics": {"endpoint": "http://ym"}}, {"ENDPOINT": "http://e"}, "http://ym", "http://e"),
        ({"metrics": {"endpoint": "http://ym"}}, {"METRICS_ENDPOINT": "http://m"}, "http://ym", ""),
        (
            {"endpoint": "http://y", "logs": {"endpoint": "http://yl"}},
            {"LOGS_ENDPOINT": "http://l"},
            "http://y",
            "http://yl",
        ),
    ],
)
def test_configuration_wins(document: dict[str, object], env: dict[str, str], metrics: str, logs: str) -> None:
    """What it says for both signals also wins over what the environment says for one."""
    config = merged(document, **env)
    assert (config.of_signal("metrics").endpoint, config.of_signal("logs").endpoint) == (metrics, logs)


def test_configuration_has_its_own_words() -> None:
    """Durations are called without their unit there."""
    document = {
        "timeout": 3.0,
        "metrics": {"enabled": False, "interval": 5.0, "temporality": "delta", "timeout": 1.0},
        "logs": {"enabled": True},
    }
    config = make_otlp_config(
        document,
        settings_from_environment({"OTEL_METRIC_EXPORT_INTERVAL": "1000", "OTEL_LOGS_EXPORTER": "none"}),
    )
    assert (config.timeout_s, config.of_signal("metrics").timeout_s, config.of_signal("logs").timeout_s) == (3, 1, 3)
    assert (config.metrics_enabled, config.metrics_interval_s, config.temporality) == (False, 5.0, "delta")
    assert config.logs_enabled


def test_client_certificate_and_key_come_from_one_place() -> None:
    """Half of each would be a pair that does not fit."""
    config = merged({"cert_file": "/y.pem"}, CLIENT_CERTIFICATE="/e.pem", CLIENT_KEY="/e.key")
    assert (config.cert_file, config.key_file) == ("/y.pem", "")


@pytest.mark.parametrize(
    ("env", "metrics", "logs", "warnings"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, False, False, 0),
        ({"OTEL_SDK_DISABLED": "yes"}, True, True, 1),
        ({"OTEL_METRICS_EXPORTER": "none"}, False, True, 0),
        ({"OTEL_METRICS_EXPORTER": "otlp,prometheus"}, True, True, 0),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, False, True, 0),
        ({"OTEL_LOGS_EXPORTER": "console"}, True, False, 1),
    ],
)
def test_signals_are_switched_off_by_the_environment(
    env: dict[str, str], metrics: bool, logs: bool, warnings: int
) -> None:
    """Prometheus is served whatever it says."""
    environment = settings_from_environment(env)
    config = make_otlp_config({}, environment)
    assert (config.metrics_enabled, config.logs_enabled, len(environment.warnings)) == (metrics, logs, warnings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (PREFIX + "TIMEOUT", "10s"),
        (PREFIX + "TIMEOUT", "0"),
        (PREFIX + "PROTOCOL", "http/json"),
        (PREFIX + "METRICS_COMPRESSION", "zstd"),
        (PREFIX + "HEADERS", "s3cret"),
        (PREFIX + "HEADERS", "a=s3%0Acret"),
        (PREFIX + "METRICS_TEMPORALITY_PREFERENCE", "sideways"),
        (PREFIX + "METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "soon"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "many"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "1s"),
        ("OTEL_BLRP_QUEUE_SIZE", "100"),
        (PREFIX + "LOGS_ENDPIONT", "http://s3cret@x"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "9464"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "always_on"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_variable_that_cannot_be_honoured_is_as_if_not_set_and_said(name: str, value: str) -> None:
    """One line with its name, and without its value, which may be a secret."""
    environment = settings_from_environment({name: value})
    (warning,) = environment.warnings
    assert name in warning
    assert "cret" not in warning
    assert make_otlp_config({}, environment) == OtlpConfig()


BATCHES = {
    "OTEL_METRIC_EXPORT_TIMEOUT": "1500",
    "OTEL_BLRP_SCHEDULE_DELAY": "250",
    "OTEL_BLRP_MAX_QUEUE_SIZE": "2048",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "512",
    "OTEL_BLRP_EXPORT_TIMEOUT": "30000",
}


def test_batches_and_their_limits_are_read() -> None:
    """Milliseconds become seconds; the configuration wins one by one."""
    environment = settings_from_environment(BATCHES)
    assert environment.warnings == ()
    assert make_otlp_config({}, environment) == OtlpConfig(
        metrics_export_timeout_s=1.5,
        logs_delay_s=0.25,
        logs_queue_records=2048,
        logs_batch_records=512,
        logs_export_timeout_s=30.0,
    )
    document = {"logs": {"delay": 1.0, "batch_records": 7}, "metrics": {"export_timeout": 2.0}}
    config = make_otlp_config(document, environment)
    assert (config.logs_delay_s, config.logs_batch_records, config.logs_queue_records) == (1.0, 7, 2048)
    assert (config.metrics_export_timeout_s, config.logs_export_timeout_s) == (2.0, 30.0)


def test_limits_of_log_records_come_before_those_of_all_signals() -> None:
    """And the configuration before both."""
    env = {
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "9",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "5",
    }
    environment = settings_from_environment(env)
    assert environment.warnings == ()
    config = make_otlp_config({}, environment)
    assert (config.logs_value_length_limit, config.logs_attribute_limit) == (100, 5)
    config = make_otlp_config({"logs": {"attribute_value_length_limit": 7}}, environment)
    assert (config.logs_value_length_limit, config.logs_attribute_limit) == (7, 5)


def test_name_that_is_nearly_right_gets_the_right_one() -> None:
    """A typo would else be silence."""
    (warning,) = settings_from_environment({"OTEL_BLRP_MAX_QUEUESIZE": "1"}).warnings
    assert warning == (
        "environment variable OTEL_BLRP_MAX_QUEUESIZE is not known; did you mean 'OTEL_BLRP_MAX_QUEUE_SIZE'?"
    )


@pytest.mark.parametrize(
    ("env", "said", "expected"),
    [
        ({}, None, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, None, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, True, True),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, None, False),
    ],
)
def test_traces_are_off_unless_somebody_wants_them(env: dict[str, str], said: bool | None, expected: bool) -> None:
    """The configuration wins."""
    assert make_otlp_config({}, settings_from_environment(env), traces=said).traces_enabled is expected
