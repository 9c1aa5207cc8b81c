/* goimload: a load client for servers that speak the goim frame protocol over TCP or WebSocket.
 *
 * It opens N authenticated connections in one room, runs the phases it is asked for, and prints one JSON
 * object.  CPU time and memory of the server process are read from the system, from a moment of quiet to
 * a moment of quiet, so that a figure is the server's own cost and a busy machine disturbs it least.
 *
 *   gcc -O2 -pthread -o goimload goimload.c
 *   goimload --proto tcp --port 3101 --conns 1000 --pid 4242 --beat 2
 *   goimload --proto ws --port 3102 --conns 1000 --pid 4242 --collect 5 --push 3111 --rate 100
 *
 *   --proto tcp|ws|sio --port P  --conns N what to connect to, how often; sio: Socket.IO over WebSocket, pushes only
 *   --window W                             so many connects at once
 *   --pid PID                              the server process
 *   --beat S  --beat-window W              heartbeats for S seconds, W in flight, of one connection after another
 *   --collect S                            count pushes for S seconds and on until none are left
 *   --push P  --rate R  --pushers K        meanwhile post to /goim/push/room at port P, R times a second in all;
 *                                          rate 0: each of K connections posts again as soon as it has its reply
 *   --nap US                               while collecting, read every US microseconds instead of at once, so that
 *                                          what a send costs does not hang on how soon the receiver is back asleep
 *   --probe MS                             meanwhile the heartbeats of one more connection, which is in no room
 *   --numbered 1                           bodies begin with a number, from 0 without a gap, and the time at which the push
 *                                          was due (8 bytes each): says what is missing, out of order, when it came, and how
 *                                          many came within --collect seconds of the first
 *
 * Exit status: 0 all went well; 1 a connection was not made, was lost, a push failed, or deliveries went on coming
 * for 30 seconds after the last push ("late"); 2 not started.
 * Loopback only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 16, OP_HEARTBEAT = 2, OP_HEARTBEAT_REPLY = 3, OP_AUTH = 7, OP_AUTH_REPLY = 8, OP_RAW = 9, OP_PUSH = 1000 };
enum { EVENTS = 1024, REPLY_SECONDS = 30, MAX_PUSHERS = 64, FINE = 6 };
enum state { CONNECTING, UPGRADING, AUTHING, LIVE, DEAD };

struct conn {
	int fd;
	enum state state;
	bool upgraded;      /* its HTTP is over */
	bool beating;       /* its heartbeat is not answered yet */
	uint32_t have, cap; /* bytes of a frame whose rest is still to come */
	uint8_t *buf;
	uint64_t next; /* the number of the push that is to come */
};
/* Counted by microseconds: one by one below 1 << FINE, above in steps of 1.6 %. */
struct latencies {
	uint64_t count[(32 - FINE + 1) << FINE], n;
	uint32_t max;
};
struct usage {
	double wall, cpu, own_cpu;
};

static struct {
	const char *proto;
	int port, conns, window, pid, beat_window, push, pushers, nap, probe, numbered;
	double beat, collect, rate;
} opt = {.proto = "tcp", .conns = 100, .window = 512, .beat_window = 512, .pushers = 1};

static bool ws, sio, beating, timing;
static struct conn *conns;
static int ep, live, dead, unanswered, late;
static uint64_t deliveries, beats, in_time, missing, disorder, arrived;
static double first_delivery, last_delivery;
static struct latencies push_lat, probe_lat;
static atomic_bool stopping;
static atomic_int threads, push_errors, probe_errors;
static atomic_long pushed;
static uint8_t scratch[1 << 20];

/* ---- the system ---- */

static uint64_t now_ns(clockid_t clock) {
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double seconds(void) { return (double)now_ns(CLOCK_MONOTONIC) / 1e9; }

static void fail(const char *what) {
	perror(what);
	exit(2);
}

/* All threads' user and system time, to the nanosecond; /proc/PID/stat has ticks of 10 ms. */
static struct usage usage(void) {
	clockid_t clock;
	struct usage u = {.wall = seconds(), .own_cpu = (double)now_ns(CLOCK_PROCESS_CPUTIME_ID) / 1e9};
	if (opt.pid && clock_getcpuclockid(opt.pid, &clock) == 0) u.cpu = (double)now_ns(clock) / 1e9;
	return u;
}

/* smaps_rollup counts pages; statm reads counters that lag by some dozen pages a core. */
static long rss_kb(void) {
	char path[64], line[256];
	long kb = 0;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", opt.pid);
	FILE *f = opt.pid ? fopen(path, "r") : NULL;
	if (!f) return 0;
	while (!kb && fgets(line, sizeof line, f)) sscanf(line, "Rss: %ld kB", &kb);
	fclose(f);
	return kb;
}

static void sleep_until(double when) {
	struct timespec t = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (double)(time_t)when) * 1e9)};
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static struct sockaddr_in loopback(int port) {
	return (struct sockaddr_in){
		.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int blocking_socket(int port) {
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	struct timeval limit = {.tv_sec = REPLY_SECONDS};
	struct sockaddr_in to = loopback(port);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (fd >= 0 && connect(fd, (void *)&to, sizeof to)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* ---- bytes ---- */

static void put32(uint8_t *b, uint32_t v) {
	v = htonl(v);
	memcpy(b, &v, 4);
}

static uint32_t get32(const uint8_t *b) { return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3]; }
static uint64_t get64(const uint8_t *b) { return (uint64_t)get32(b) << 32 | get32(b + 4); }
static uint32_t get16(const uint8_t *b) { return (uint32_t)b[0] << 8 | b[1]; }

static uint32_t some_number(void) {
	static _Thread_local uint32_t x = 2463534242;
	x ^= x << 13, x ^= x >> 17, x ^= x << 5;
	return x;
}

/* One WebSocket message of a client, up to 65,535 bytes; out has room for 8 bytes more. */
static size_t mask(uint8_t *out, uint8_t first, const uint8_t *b, size_t len) {
	uint8_t *o = out;
	*o++ = first;
	if (len < 126) *o++ = 0x80 | (uint8_t)len;
	else *o++ = 0x80 | 126, *o++ = (uint8_t)(len >> 8), *o++ = (uint8_t)len;
	put32(o, some_number());
	for (size_t i = 0; i < len; i++) o[4 + i] = b[i] ^ o[i & 3];
	return (size_t)(o + 4 - out) + len;
}

/* One frame as this protocol carries it; body up to 512 bytes, out has room for 32 bytes more. */
static size_t encode(uint8_t *out, uint32_t op, uint32_t seq, const char *body, size_t n) {
	uint8_t frame[HEADER + 512] = {[5] = HEADER, [7] = 1};
	size_t len = HEADER + n;
	put32(frame, (uint32_t)len);
	put32(frame + 8, op);
	put32(frame + 12, seq);
	memcpy(frame + HEADER, body, n);
	if (!ws) return memcpy(out, frame, len), len;
	return mask(out, 0x82, frame, len);
}

/* An empty key, as goim's example clients send it: the server makes one. */
static size_t encode_auth(uint8_t *out, int mid, const char *room) {
	char token[256] = "40"; /* a CONNECT packet of Socket.IO */
	int n = snprintf(token + 2, sizeof token - 2,
		"{\"mid\":%d,\"key\":\"\",\"room_id\":\"%s\",\"platform\":\"bench\",\"accepts\":[1000,1001,1002]}", mid, room);
	if (sio) return mask(out, 0x81, (uint8_t *)token, (size_t)n + 2);
	return encode(out, OP_AUTH, 1, token + 2, (size_t)n);
}

static size_t upgrade_request(char *out, size_t size) {
	return (size_t)snprintf(out, size,
		"GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		sio ? "/socket.io/?EIO=4&transport=websocket" : "/sub", opt.port);
}

/* Length of a complete and right answer (RFC 6455 section 1.3 has its accept value), 0 until it is here, -1 if wrong. */
static ssize_t upgrade_answer(const uint8_t *b, size_t n) {
	const uint8_t *end = memmem(b, n, "\r\n\r\n", 4);
	if (!end) return 0;
	size_t len = (size_t)(end + 4 - b);
	bool right = len > 12 && !memcmp(b, "HTTP/1.1 101", 12) && memmem(b, len, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28);
	return right ? (ssize_t)len : -1;
}

/* ---- one connection ---- */

static void drop(struct conn *c) {
	if (c->state == LIVE) live--;
	if (c->beating) unanswered--;
	c->state = DEAD;
	dead++;
	close(c->fd);
	free(c->buf);
	c->buf = NULL;
	c->have = c->cap = 0;
	c->beating = false;
}

static void put(struct conn *c, const void *b, size_t n) {
	if (send(c->fd, b, n, MSG_NOSIGNAL) != (ssize_t)n) drop(c);
}

static void authenticate(struct conn *c) {
	uint8_t out[512];
	c->state = AUTHING;
	put(c, out, encode_auth(out, (int)(c - conns) + 1, "bench://1"));
}

static void on_connected(struct conn *c) {
	int err = 0;
	socklen_t size = sizeof err;
	char request[256];
	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &size);
	if (err) return drop(c);
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
	epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
	if (!ws) return authenticate(c);
	c->state = UPGRADING;
	put(c, request, upgrade_request(request, sizeof request));
}

/* The next connection that has no heartbeat in flight sends one. */
static void beat_next(void) {
	static int next;
	for (int tried = 0; tried < opt.conns; tried++) {
		struct conn *c = &conns[next];
		uint8_t out[64];
		next = (next + 1) % opt.conns;
		if (c->state != LIVE || c->beating) continue;
		c->beating = true;
		unanswered++;
		put(c, out, encode(out, OP_HEARTBEAT, 2, "", 0));
		return;
	}
}

static void add_latency(struct latencies *l, uint64_t ns) {
	uint32_t us = ns / 1000 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 1000);
	int shift = us >> FINE ? 31 - __builtin_clz(us) - FINE : 0;
	l->count[(shift << FINE) + (us >> shift)]++;
	l->n++;
	if (us > l->max) l->max = us;
}

/* What is in the body's first 16 bytes: see --numbered. */
static void on_numbered(struct conn *c, const uint8_t *body, size_t n) {
	if (n < 16) return drop(c);
	uint64_t number = get64(body);
	if (number < c->next) {
		disorder++;
	} else {
		missing += number - c->next;
		c->next = number + 1;
	}
	add_latency(&push_lat, arrived - get64(body + 8));
}

static void on_push(struct conn *c, const uint8_t *body, size_t n) {
	deliveries++;
	if (opt.numbered) return on_numbered(c, body, n);
	const uint8_t *t = timing ? memmem(body, n, "\"ts\":", 5) : NULL;
	uint64_t sent = 0;
	if (!t) return;
	for (t += 5; t < body + n && *t >= '0' && *t <= '9'; t++) sent = sent * 10 + (*t - '0');
	add_latency(&push_lat, arrived - sent);
}

static void come_in(struct conn *c) {
	c->state = LIVE;
	live++;
}

static void on_frame(struct conn *c, uint32_t op, const uint8_t *body, size_t n) {
	if (op >= OP_PUSH) {
		on_push(c, body, n);
	} else if (op == OP_AUTH_REPLY && c->state == AUTHING) {
		come_in(c);
	} else if (op == OP_HEARTBEAT_REPLY && c->beating) {
		c->beating = false;
		unanswered--;
		beats++;
		if (beating) beat_next();
	}
}

/* Takes complete frames off b and returns how many bytes they were, or -1 where the stream is broken. */
static ssize_t take_frames(struct conn *c, const uint8_t *b, size_t n) {
	size_t i = 0;
	while (n - i >= HEADER) {
		uint32_t len = get32(b + i), op = get32(b + i + 8);
		if (get16(b + i + 4) != HEADER || len < HEADER || len > sizeof scratch) return -1;
		if (n - i < len) break;
		if (op != OP_RAW) on_frame(c, op, b + i + HEADER, len - HEADER);
		else if (take_frames(c, b + i + HEADER, len - HEADER) != (ssize_t)len - HEADER) return -1;
		i += len;
	}
	return (ssize_t)i;
}

/* One packet of Engine.IO 4, with one of Socket.IO 5 in it; says whether it was expected. */
static bool on_packet(struct conn *c, const uint8_t *b, size_t n) {
	uint8_t out[16];
	if (n > 1 && b[0] == '4' && b[1] == '2') on_push(c, b, n);
	else if (n > 1 && b[0] == '4' && b[1] == '0' && c->state == AUTHING) come_in(c);
	else if (n && b[0] == '0' && c->state == UPGRADING) authenticate(c);
	else if (n == 1 && b[0] == '2') put(c, out, mask(out, 0x81, (const uint8_t *)"3", 1));
	else return false;
	return true;
}

static bool on_message(struct conn *c, uint8_t first, const uint8_t *b, size_t n) {
	if (sio) return first == 0x81 && on_packet(c, b, n);
	return first == 0x82 && take_frames(c, b, n) == (ssize_t)n;
}

static ssize_t take_messages(struct conn *c, const uint8_t *b, size_t n) {
	size_t i = 0;
	while (n - i >= 2) {
		size_t head = 2, len = b[i + 1] & 127;
		if (len == 126) head = 4;
		if (len == 127) head = 10;
		if (n - i < head) break;
		if (head == 4) len = get16(b + i + 2);
		if (head == 10) len = (size_t)get32(b + i + 2) << 32 | get32(b + i + 6);
		if (len > sizeof scratch) return -1;
		if (n - i < head + len) break;
		if (!on_message(c, b[i], b + i + head, len)) return -1;
		if (c->state == DEAD) break;
		i += head + len;
	}
	return (ssize_t)i;
}

static ssize_t take(struct conn *c, const uint8_t *b, size_t n) {
	if (!ws) return take_frames(c, b, n);
	if (c->state != UPGRADING || c->upgraded) return take_messages(c, b, n);
	ssize_t used = upgrade_answer(b, n), more = 0;
	if (used <= 0) return used;
	c->upgraded = true;
	if (sio) more = take_messages(c, b + used, n - (size_t)used); /* the server speaks first */
	else authenticate(c); /* the server is silent until then: nothing follows the answer */
	return more < 0 ? more : used + more;
}

static void on_readable(struct conn *c) {
	size_t have = c->have;
	if (have) memcpy(scratch, c->buf, have);
	ssize_t n = recv(c->fd, scratch + have, sizeof scratch - have, 0);
	if (n < 0 && errno == EAGAIN) return;
	arrived = timing ? now_ns(CLOCK_REALTIME) : 0;
	ssize_t used = n <= 0 ? -1 : take(c, scratch, have + (size_t)n);
	if (c->state == DEAD) return;
	if (used < 0) return drop(c);
	c->have = (uint32_t)(have + (size_t)n - (size_t)used);
	if (c->have > c->cap) {
		c->cap = c->have + 64;
		c->buf = realloc(c->buf, c->cap);
		if (!c->buf) fail("realloc");
	}
	if (c->have) memcpy(c->buf, scratch + used, c->have);
}

static void open_one(struct conn *c) {
	int one = 1;
	struct linger reset = {.l_onoff = 1}; /* leave no port in TIME_WAIT for the next run to search through */
	struct sockaddr_in to = loopback(opt.port);
	struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (c->fd < 0) fail("socket");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	if (connect(c->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) return drop(c);
	epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

/* Serves what is ready; says whether there may be more. */
static bool turn(int ms) {
	struct epoll_event events[EVENTS];
	int n = epoll_wait(ep, events, EVENTS, ms);
	for (int i = 0; i < n; i++) {
		struct conn *c = events[i].data.ptr;
		if (c->state == CONNECTING) on_connected(c);
		else if (c->state != DEAD) on_readable(c);
	}
	return n == EVENTS;
}

/* ---- threads beside the reader ---- */

/* Reads one HTTP answer and says whether it is goim's success. */
static bool read_answer(int fd) {
	char b[4096];
	size_t n = 0;
	while (n < sizeof b - 1) {
		ssize_t got = recv(fd, b + n, sizeof b - 1 - n, 0);
		if (got <= 0) return false;
		n += (size_t)got;
		b[n] = 0;
		char *end = strstr(b, "\r\n\r\n"), *length = strcasestr(b, "content-length:");
		if (!end) continue;
		if (!length) return false;
		if (b + n >= end + 4 + atol(length + 15)) return !strncmp(b + 9, "200", 3) && strstr(end, "\"code\":0");
	}
	return false;
}

static bool post(int fd) {
	char body[64], request[512];
	int size = snprintf(body, sizeof body, "{\"test\":1,\"ts\":%lu}", (unsigned long)now_ns(CLOCK_REALTIME));
	int n = snprintf(request, sizeof request,
		"POST /goim/push/room?operation=%d&type=bench&room=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", OP_PUSH, opt.push, size, body);
	return send(fd, request, (size_t)n, MSG_NOSIGNAL) == n && read_answer(fd);
}

static void *pusher(void *arg) {
	int fd = blocking_socket(opt.push);
	double start = seconds(), gap = opt.rate > 0 ? opt.pushers / opt.rate : 0;
	double first = start + gap * (double)(intptr_t)arg / opt.pushers;
	for (long i = 0; !stopping; i++) {
		if (gap > 0) sleep_until(first + gap * (double)i);
		if (stopping) break;
		if (fd < 0 || !post(fd)) {
			push_errors++;
			break;
		}
		pushed++;
	}
	if (fd >= 0) close(fd);
	threads--;
	return NULL;
}

static bool exchange(int fd, const void *out, size_t n, size_t expected) {
	uint8_t in[512];
	return send(fd, out, n, MSG_NOSIGNAL) == (ssize_t)n && recv(fd, in, expected, MSG_WAITALL) == (ssize_t)expected;
}

/* A connection in no room; -1 where the server refuses it. */
static int open_probe(void) {
	uint8_t b[512];
	int fd = blocking_socket(opt.port);
	size_t n = 0;
	ssize_t done = 0, got;
	if (ws) {
		size_t size = upgrade_request((char *)b, sizeof b);
		if (send(fd, b, size, MSG_NOSIGNAL) != (ssize_t)size) return -1;
		while (done == 0 && (got = recv(fd, b + n, sizeof b - n, 0)) > 0) done = upgrade_answer(b, n += (size_t)got);
		if (done <= 0) return -1;
	}
	size_t size = encode_auth(b, opt.conns + 1, "");
	return exchange(fd, b, size, HEADER + (ws ? 2 : 0)) ? fd : -1;
}

/* Waits half to one and a half times --probe between heartbeats, so as not to run in step with the pushes. */
static void *prober(void *arg) {
	int fd = open_probe();
	uint8_t out[64];
	while (!stopping) {
		sleep_until(seconds() + opt.probe / 1e3 * (0.5 + some_number() % 1024 / 1024.0));
		size_t n = encode(out, OP_HEARTBEAT, 2, "", 0);
		uint64_t sent = now_ns(CLOCK_MONOTONIC);
		if (fd < 0 || !exchange(fd, out, n, HEADER + 4 + (ws ? 2 : 0))) {
			probe_errors++;
			break;
		}
		add_latency(&probe_lat, now_ns(CLOCK_MONOTONIC) - sent);
	}
	if (fd >= 0) close(fd);
	threads--;
	return arg;
}

static void start(void *(*body)(void *), intptr_t arg) {
	pthread_t thread;
	threads++;
	if (pthread_create(&thread, NULL, body, (void *)arg)) fail("pthread_create");
	pthread_detach(thread);
}

/* ---- phases ---- */

/* The lower edge of the step that the percentile falls into. */
static double percentile_ms(const struct latencies *l, double p) {
	uint64_t rank = l->n ? (uint64_t)((double)(l->n - 1) * p) : 0, seen = 0;
	for (uint32_t i = 0; i < sizeof l->count / sizeof *l->count; i++) {
		uint32_t shift = i >> FINE ? (i >> FINE) - 1 : 0;
		if ((seen += l->count[i]) > rank) return (double)((uint64_t)(i - (shift << FINE)) << shift) / 1e3;
	}
	return 0;
}

static void print_latencies(const char *name, const struct latencies *l) {
	printf(",\"%s\":{\"count\":%lu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}", name,
		(unsigned long)l->n, percentile_ms(l, .5), percentile_ms(l, .99), l->max / 1e3);
}

static void connect_all(void) {
	long before = rss_kb();
	struct usage u = usage();
	for (int next = 0; live + dead < opt.conns && seconds() - u.wall < 2 * REPLY_SECONDS; turn(50))
		while (next < opt.conns && next - live - dead < opt.window) open_one(&conns[next++]);
	struct usage v = usage();
	printf(",\"connect\":{\"live\":%d,\"seconds\":%.3f,\"cpu_s\":%.6f,\"rss_kb_before\":%ld,\"rss_kb\":%ld}", live,
		v.wall - u.wall, v.cpu - u.cpu, before, rss_kb());
}

static void beat_all(void) {
	struct usage u = usage();
	beating = true;
	for (int i = 0; i < opt.beat_window && i < live; i++) beat_next();
	while (seconds() - u.wall < opt.beat) turn(20);
	beating = false;
	for (double end = seconds(); unanswered > 0 && seconds() - end < 5;) turn(20);
	struct usage v = usage();
	printf(",\"beat\":{\"replies\":%lu,\"unanswered\":%d,\"seconds\":%.3f,\"cpu_s\":%.6f}", (unsigned long)beats, unanswered,
		v.wall - u.wall, v.cpu - u.cpu);
}

static void gather(int ms) {
	uint64_t seen = deliveries;
	if (opt.nap) sleep_until(seconds() + opt.nap / 1e6);
	/* After a nap every connection gets its turn: the kernel goes round, so this many turns reach them all. */
	for (int left = opt.conns / EVENTS; turn(opt.nap ? 0 : ms) && left > 0; left--) {
	}
	if (deliveries == seen) return;
	last_delivery = seconds();
	if (!seen) first_delivery = last_delivery;
	if (last_delivery - first_delivery <= opt.collect) in_time = deliveries;
}

/* Until every push has reached every connection, or nothing has come for a while. */
static void drain(void) {
	double patience = opt.push || opt.numbered ? 2 : 0.4, start = seconds(), limit = start + REPLY_SECONDS;
	if (last_delivery < start) last_delivery = start; /* patience begins now */
	while (seconds() - last_delivery < patience) {
		if (opt.push && deliveries >= (uint64_t)pushed * (uint64_t)opt.conns) return;
		if (seconds() > limit) { /* then nobody knows what is lost and what is late */
			late = 1;
			return;
		}
		gather(20);
	}
}

static void collect(void) {
	struct usage u = usage();
	last_delivery = u.wall;
	timing = opt.rate > 0 || opt.numbered;
	for (int i = 0; opt.push && i < opt.pushers; i++) start(pusher, i);
	if (opt.probe) start(prober, 0);
	while (seconds() - u.wall < opt.collect) gather(20);
	stopping = true;
	while (threads > 0) gather(1); /* bounded by the reply timeout of their sockets */
	drain();
	struct usage v = usage();
	printf(",\"collect\":{\"seconds\":%.3f,\"cpu_s\":%.6f,\"client_cpu_s\":%.3f,\"deliveries\":%lu",
		last_delivery - u.wall, v.cpu - u.cpu, v.own_cpu - u.own_cpu, (unsigned long)deliveries);
	if (opt.push) printf(",\"pushed\":%ld,\"lost\":%ld", (long)pushed, (long)pushed * opt.conns - (long)deliveries);
	if (opt.numbered)
		printf(",\"missing\":%lu,\"disorder\":%lu,\"in_time\":%lu", (unsigned long)missing, (unsigned long)disorder,
			(unsigned long)in_time);
	printf("}");
	if (timing) print_latencies("latency", &push_lat);
	if (opt.probe) print_latencies("probe", &probe_lat);
}

static void parse(int argc, char **argv) {
	struct { const char *name; int *i; double *d; } known[] = {
		{"--port", &opt.port, NULL}, {"--conns", &opt.conns, NULL}, {"--window", &opt.window, NULL}, {"--pid", &opt.pid, NULL},
		{"--beat-window", &opt.beat_window, NULL}, {"--push", &opt.push, NULL}, {"--pushers", &opt.pushers, NULL},
		{"--nap", &opt.nap, NULL}, {"--probe", &opt.probe, NULL}, {"--numbered", &opt.numbered, NULL}, {"--beat", NULL, &opt.beat},
		{"--collect", NULL, &opt.collect}, {"--rate", NULL, &opt.rate}};
	for (int i = 1; i < argc; i += 2) {
		size_t k = 0, count = sizeof known / sizeof *known;
		while (k < count && strcmp(argv[i], known[k].name)) k++;
		bool proto = !strcmp(argv[i], "--proto");
		if (i + 1 == argc || (k == count && !proto)) {
			fprintf(stderr, "goimload: %s: %s\n", argv[i], i + 1 == argc ? "wants a value" : "unknown option");
			exit(2);
		}
		if (proto) opt.proto = argv[i + 1];
		else if (known[k].i) *known[k].i = atoi(argv[i + 1]);
		else *known[k].d = atof(argv[i + 1]);
	}
	sio = !strcmp(opt.proto, "sio");
	ws = sio || !strcmp(opt.proto, "ws");
	if ((!ws && strcmp(opt.proto, "tcp")) || opt.port < 1 || opt.conns < 1 || opt.pushers < 1 || opt.pushers > MAX_PUSHERS) {
		fprintf(stderr, "goimload: --proto tcp|ws|sio, --port, --conns or --pushers (1 to %d) is wrong\n", MAX_PUSHERS);
		exit(2);
	}
}

int main(int argc, char **argv) {
	parse(argc, argv);
	conns = calloc((size_t)opt.conns, sizeof *conns);
	ep = epoll_create1(0);
	if (!conns || ep < 0) fail("goimload");
	printf("{\"proto\":\"%s\",\"conns\":%d", opt.proto, opt.conns);
	connect_all();
	bool ok = live == opt.conns;
	if (ok && opt.beat > 0) beat_all();
	if (ok && opt.collect > 0) collect();
	printf(",\"live\":%d,\"dead\":%d,\"push_errors\":%d,\"probe_errors\":%d,\"late\":%d}\n", live, dead, push_errors,
		probe_errors, late);
	fflush(stdout);
	_exit(ok && !dead && !unanswered && !push_errors && !probe_errors && !late ? 0 : 1);
}
