"""The Celery application. Valkey only carries wake-ups: no task has a payload, none is a truth."""

from celery import Celery

from app.db.addresses import redis_url

app = Celery("membank", broker=redis_url(), include=["workers.tasks"])
app.conf.update(
    task_ignore_result=True,
    # A wake-up that is lost or doubled does no harm: what is to be done stands in the outbox, and
    # the relay sends another one. So tasks are acknowledged when they start.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_timeout": 30, "socket_connect_timeout": 5},
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    worker_enable_remote_control=False,
    task_serializer="json",
    accept_content=["json"],
)


def queue_of(profile: str) -> str:
    """Workers take wake-ups for the profile that they have loaded."""
    return f"encode.{profile[:12]}"
