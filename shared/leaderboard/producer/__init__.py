"""What a game platform embeds: the transactional outbox (`outbox.put`) and its relay to Kafka."""
