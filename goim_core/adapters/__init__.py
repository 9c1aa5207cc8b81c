"""Adapters to what is outside of the process: a package or a module for each system, and an extra to install.

    nats        NATSQueue                                     goim_core[nats]
    kafka       KafkaQueue                                    goim_core[kafka]
    redis       RedisQueue, RedisRegistry, RedisDiscovery     goim_core[redis]
    discovery   BilibiliDiscovery                             goim_core[discovery]
    sqlite      SQLiteStorage
    postgres    PostgresStorage                               goim_core[postgres]
    jwt         JWTAuth                                       goim_core[jwt]

Import a class from there: ``from goim_core.adapters.nats import NATSQueue``; what is deeper is their own. No
system's adapter imports another's, and nothing of the core imports any.
"""
