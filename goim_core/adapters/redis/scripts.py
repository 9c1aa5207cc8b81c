"""What RedisRegistry has Redis do in one step, in Lua (https://redis.io/docs/latest/develop/programmability/).

Beside goim's own keys there are these, which Go processes do not look at:

    goim_registry:key:<key>        hash: who holds the key: id, node, mid, order, server, platform
    goim_registry:node:<node>      hash, gone when the node gives no sign of life: boot, epoch, connections,
                                   addresses
    goim_registry:nodes            hash: boot -> node, of all that lived
    goim_registry:held:<boot>      set: the keys that this start of a node holds
    goim_registry:replaced:<boot>  list: "<id> <key>" of its connections whose key was taken over elsewhere
    goim_registry:order            the last number in the order of logins: microseconds of Redis's clock

A boot is one start of a node, in hexadecimal digits. A connection's id is ``<boot>.<number>``: it tells two
connections with one key apart, and which process has to live for a route to be good.
"""

from __future__ import annotations

import hashlib

__all__ = ["ADD", "BEAT", "CLEAN", "KEYS", "LEAVE", "MIDS", "REMOVE", "REPORT", "SCRIPTS", "sha"]

COMMON = """
local OWN = 'goim_registry:'
local function run(command, key, ...)
    local reply = redis.pcall(command, key, ...)
    if type(reply) == 'table' and reply.err then error(key .. ': ' .. reply.err, 0) end
    return reply
end
local function boot_of(id) return string.match(id, '^%x+') end
local function boot_at(node) return run('HGET', OWN .. 'node:' .. node, 'boot') end
local boots = {}
local function lives(node, id)
    if boots[node] == nil then boots[node] = boot_at(node) end
    return boots[node] == boot_of(id)
end
local function holder(key)
    local f = run('HMGET', OWN .. 'key:' .. key, 'id', 'node', 'mid', 'order', 'server', 'platform')
    if not f[1] then return nil end
    return {id = f[1], node = f[2], mid = f[3], order = f[4], server = f[5], platform = f[6]}
end
local function forget(key, old)
    if run('HGET', 'mid_' .. old.mid, key) == old.server then run('HDEL', 'mid_' .. old.mid, key) end
    if run('GET', 'key_' .. key) == old.server then run('DEL', 'key_' .. key) end
    run('DEL', OWN .. 'key:' .. key)
    run('SREM', OWN .. 'held:' .. boot_of(old.id), key)
end
"""

# boot, node, epoch, expiry; and of each connection key, id, mid, order (empty: it is new), server, platform.
# Of each the answer is its order, empty where another has the key, or '!' and what is wrong.
ADD = (
    COMMON
    + """
local boot, node, epoch, expire = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local known = run('HMGET', OWN .. 'node:' .. node, 'boot', 'epoch')
if known[1] == boot and tonumber(known[2] or 0) > epoch then
    return redis.error_reply('STALE the node has connected anew since')
end
local function next_order()
    local now, last = redis.call('TIME'), tonumber(run('GET', OWN .. 'order') or 0)
    local order = string.format('%.0f', math.max(now[1] * 1000000 + now[2], last + 1))
    run('SET', OWN .. 'order', order)
    return order
end
local function replaced(key, order, old, server)
    local goims = run('GET', 'key_' .. key)
    if goims and order ~= '' and goims ~= server and (not old or goims ~= old.server) then return true end
    return old and order ~= '' and tonumber(old.order) > tonumber(order)
end
local function take_over(key, old)
    forget(key, old)
    local other = boot_of(old.id)
    if other ~= boot and lives(old.node, old.id) then
        run('RPUSH', OWN .. 'replaced:' .. other, old.id .. ' ' .. key)
        run('EXPIRE', OWN .. 'replaced:' .. other, expire)
    end
end
local function write(key, id, mid, order, server, platform)
    run('HSET', 'mid_' .. mid, key, server)
    run('SET', 'key_' .. key, server)
    run('HSET', OWN .. 'key:' .. key, 'id', id, 'node', node, 'mid', mid, 'order', order,
        'server', server, 'platform', platform)
    run('SADD', OWN .. 'held:' .. boot, key)
end
local function add(key, id, mid, order, server, platform)
    local old = holder(key)
    if replaced(key, order, old, server) then
        if old and old.id == id then forget(key, old) end
        return ''
    end
    if old and old.id ~= id then take_over(key, old) end
    if order == '' then order = old and old.id == id and old.order or next_order() end
    -- Renewing takes no memory, and so is possible where none is left.
    local kept = old and old.id == id and run('EXPIRE', 'key_' .. key, expire) == 1
        and run('HEXISTS', 'mid_' .. mid, key) == 1
        and run('SISMEMBER', OWN .. 'held:' .. boot, key) == 1
    if not kept then write(key, id, mid, order, server, platform) end
    run('EXPIRE', 'mid_' .. mid, expire)
    run('EXPIRE', 'key_' .. key, expire)
    run('EXPIRE', OWN .. 'key:' .. key, expire)
    return order
end
local answers = {}
for at = 5, #ARGV, 6 do
    local ok, answer = pcall(add, unpack(ARGV, at, at + 5))
    answers[#answers + 1] = ok and answer or '!' .. tostring(answer)
end
run('EXPIRE', OWN .. 'held:' .. boot, expire)
return answers
"""
)

# key and id of each connection; how many of them were there.
REMOVE = (
    COMMON
    + """
local removed = 0
for at = 1, #ARGV, 2 do
    local old = holder(ARGV[at])
    if old and old.id == ARGV[at + 1] then
        forget(ARGV[at], old)
        removed = removed + 1
    end
end
return removed
"""
)

# Keys; of each that is somewhere key and server.
KEYS = (
    COMMON
    + """
local found = {}
for _, key in ipairs(ARGV) do
    local server = run('GET', 'key_' .. key)
    local held = server and holder(key)
    if server and not (held and held.server == server and not lives(held.node, held.id)) then
        found[#found + 1] = key
        found[#found + 1] = server
    end
end
return found
"""
)

# Users; of each connection mid, key, server, platform, order. One that a Go process wrote has no holder.
MIDS = (
    COMMON
    + """
local found = {}
local function add(...)
    for _, value in ipairs({...}) do found[#found + 1] = value end
end
for _, mid in ipairs(ARGV) do
    local hash = run('HGETALL', 'mid_' .. mid)
    for at = 1, #hash, 2 do
        local key, server = hash[at], hash[at + 1]
        local held = holder(key)
        if held and held.server == server and held.mid == mid then
            if lives(held.node, held.id) then add(mid, key, server, held.platform, held.order) end
        elseif run('GET', 'key_' .. key) == server then
            add(mid, key, server, '', '0')
        end
    end
end
return found
"""
)

# node, boot, epoch, how long it lives in milliseconds, expiry, whether the name is claimed.
# The boot that had the name, or the empty string; empty also where nothing was known of the node.
BEAT = (
    COMMON
    + """
local node, boot, epoch, alive, expire, claim = unpack(ARGV)
local key = OWN .. 'node:' .. node
local before = boot_at(node)
if before ~= boot then
    if before and claim == '' then return before end
    run('DEL', key)
    run('HSET', key, 'boot', boot, 'epoch', epoch)
end
run('PEXPIRE', key, alive)  -- first: it is possible without memory
if run('HGET', key, 'epoch') ~= epoch then run('HSET', key, 'epoch', epoch) end
if run('HEXISTS', OWN .. 'nodes', boot) == 0 then run('HSET', OWN .. 'nodes', boot, node) end
run('EXPIRE', OWN .. 'nodes', expire)
run('EXPIRE', OWN .. 'held:' .. boot, expire)
return before or ''
"""
)

# node, boot, expiry, connections, addresses, and goim's slots with their JSON.
# Of each other node that lives a list: connections, addresses, JSON of each slot.
REPORT = (
    COMMON
    + """
local node, boot, expire, connections, addresses = unpack(ARGV, 1, 5)
if boot_at(node) == boot then
    run('HSET', OWN .. 'node:' .. node, 'connections', connections, 'addresses', addresses)
end
run('DEL', 'ol_' .. node)
if #ARGV > 5 then
    run('HSET', 'ol_' .. node, unpack(ARGV, 6))
    run('EXPIRE', 'ol_' .. node, expire)
end
local others = {}
local nodes = run('HGETALL', OWN .. 'nodes')
for at = 1, #nodes, 2 do
    local other = nodes[at + 1]
    if other ~= node and lives(other, nodes[at]) then
        local counts = run('HMGET', OWN .. 'node:' .. other, 'connections', 'addresses')
        others[#others + 1] = {counts[1] or '0', counts[2] or '0', unpack(run('HVALS', 'ol_' .. other))}
    end
end
return others
"""
)

# How many routes at most. Forgets so many of nodes that are dead; how many there were.
CLEAN = (
    COMMON
    + """
local left = tonumber(ARGV[1])
local nodes = run('HGETALL', OWN .. 'nodes')
for at = 1, #nodes, 2 do
    local boot, node = nodes[at], nodes[at + 1]
    if left > 0 and not lives(node, boot) then
        local keys = run('SPOP', OWN .. 'held:' .. boot, left)
        for _, key in ipairs(keys) do
            local old = holder(key)
            if old and boot_of(old.id) == boot then forget(key, old) end
        end
        left = left - #keys
        if left > 0 then
            run('HDEL', OWN .. 'nodes', boot)
            run('DEL', OWN .. 'replaced:' .. boot)
            if not boots[node] then run('DEL', 'ol_' .. node) end
        end
    end
end
return tonumber(ARGV[1]) - left
"""
)

# node, boot: the node has stopped.
LEAVE = (
    COMMON
    + """
if boot_at(ARGV[1]) == ARGV[2] then run('DEL', OWN .. 'node:' .. ARGV[1]) end
return 0
"""
)

SCRIPTS = (ADD, REMOVE, KEYS, MIDS, BEAT, REPORT, CLEAN, LEAVE)


def sha(script: str) -> str:
    """The name by which EVALSHA calls ``script``."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
