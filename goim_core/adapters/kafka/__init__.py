"""Kafka: :class:`KafkaQueue`. Needs aiokafka, and asyncio."""

from goim_core.adapters.kafka.queue import KafkaQueue

__all__ = ["KafkaQueue"]
