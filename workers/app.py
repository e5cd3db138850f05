"""The Celery application. Valkey carries wake-ups only: no task has a payload or a result."""

from celery import Celery

from app.db.addresses import redis_url

app = Celery("membank", broker=redis_url(), include=["workers.tasks"])
app.conf.update(
    task_ignore_result=True,
    # A lost or duplicate wake-up does no harm: the work is recorded in the outbox, and the relay
    # sends another wake-up. So tasks are acknowledged when they start.
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
    """The queue of wake-ups for a profile, read by the workers that have loaded it."""
    return f"encode.{profile[:12]}"
