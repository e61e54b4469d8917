//! RabbitMQ 4 and other brokers over AMQP 1.0, on fe2o3-amqp.
