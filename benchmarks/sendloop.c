/* sendloop: what a push costs when nothing but send() is left.  The baseline of goimload's figures.
 *
 * It accepts N connections, answers each one's handshake and auth as a goim server would, and then sends one
 * message after the other to all of them, in a plain loop: the bytes that a goim server would send for a push of
 * goimload's.  It knows no rooms, keeps no state but the sockets, and does not read.
 *
 *   gcc -O2 -o sendloop sendloop.c
 *   sendloop --proto tcp --conns 1000 --seconds 5             as fast as it goes
 *   sendloop --proto ws --conns 1000 --seconds 5 --rate 45    45 messages a second
 *
 * It prints {"port":P,"pid":PID} once it listens, what it sent once it is done, and exits when its standard
 * input is closed.  A send that would block is counted and left out; after a round with such sends it waits until
 * a socket has room again, so that refused calls do not use up its time.  Loopback only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 16, OP_AUTH_REPLY = 8, OP_PUSH = 1000, PATIENCE_SECONDS = 30, SETTLE_MS = 200 };

static int conns = 100;
static double run_seconds = 5, rate;
static bool ws;
static int *fds;
static long sent, blocked, rounds, broken;

static const char switching[] =
	"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"; /* goimload's key is always the same */

static void fail(const char *what) {
	perror(what);
	exit(2);
}

static double now(clockid_t clock) {
	struct timespec t;
	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void put32(uint8_t *b, uint32_t v) {
	v = htonl(v);
	memcpy(b, &v, 4);
}

/* A frame with a body of at most 100 bytes; a WebSocket server's message is not masked. */
static size_t encode(uint8_t *out, uint32_t op, uint32_t seq, const char *body, size_t n) {
	size_t len = HEADER + n;
	uint8_t *o = out;
	if (ws) *o++ = 0x82, *o++ = (uint8_t)len;
	memset(o, 0, HEADER);
	put32(o, (uint32_t)len);
	o[5] = HEADER;
	o[7] = 1;
	put32(o + 8, op);
	put32(o + 12, seq);
	memcpy(o + HEADER, body, n);
	return (size_t)(o - out) + len;
}

static size_t encode_push(uint8_t *out) {
	char body[64];
	double t = now(CLOCK_REALTIME);
	int n = snprintf(body, sizeof body, "{\"test\":1,\"ts\":%lu}", (unsigned long)(t * 1e9));
	return encode(out, OP_PUSH, 0, body, (size_t)n);
}

/* ---- connections ---- */

static int listen_anywhere(void) {
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof a;
	struct timeval limit = {.tv_sec = PATIENCE_SECONDS};
	if (fd < 0 || bind(fd, (void *)&a, sizeof a) || listen(fd, 4096)) fail("listen");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	getsockname(fd, (void *)&a, &size);
	printf("{\"port\":%d,\"pid\":%d}\n", ntohs(a.sin_port), getpid());
	fflush(stdout);
	return fd;
}

static void welcome(int fd) {
	uint8_t in[4096], reply[64];
	struct timeval limit = {.tv_sec = PATIENCE_SECONDS};
	int one = 1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (ws && (recv(fd, in, sizeof in, 0) <= 0 || send(fd, switching, sizeof switching - 1, MSG_NOSIGNAL) < 0)) fail("handshake");
	if (recv(fd, in, sizeof in, 0) <= 0) fail("auth");
	if (send(fd, reply, encode(reply, OP_AUTH_REPLY, 1, "", 0), MSG_NOSIGNAL) < 0) fail("auth reply");
}

static void accept_all(int listener) {
	for (int i = 0; i < conns; i++) {
		fds[i] = accept(listener, NULL, NULL);
		if (fds[i] < 0) fail("accept");
		welcome(fds[i]);
	}
	close(listener);
}

/* ---- the loop ---- */

static void wait_for_room(int fd) {
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	poll(&p, 1, 1000);
}

/* Part of the message is out: the rest has to follow, or the stream would be broken. */
static bool finish(int fd, const uint8_t *b, size_t n) {
	for (int tries = 0; n > 0 && tries < PATIENCE_SECONDS; tries++) {
		wait_for_room(fd);
		ssize_t k = send(fd, b, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (k > 0) b += k, n -= (size_t)k;
	}
	return n == 0;
}

/* Sends to all; returns a socket that had no room, or -1. */
static int send_round(const uint8_t *message, size_t size) {
	int full = -1;
	for (int i = 0; i < conns; i++) {
		ssize_t n = send(fds[i], message, size, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n == (ssize_t)size) sent++;
		else if (n > 0 && finish(fds[i], message + n, size - (size_t)n)) sent++;
		else if (n < 0 && errno == EAGAIN) blocked++, full = fds[i];
		else broken++;
	}
	return full;
}

static void sleep_for(double s) {
	struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};
	if (s > 0) nanosleep(&t, NULL);
}

static void run(void) {
	uint8_t message[128];
	double start = now(CLOCK_MONOTONIC), elapsed = 0;
	while (elapsed < run_seconds && !broken) {
		int full = send_round(message, encode_push(message));
		rounds++;
		if (full >= 0) wait_for_room(full);
		elapsed = now(CLOCK_MONOTONIC) - start;
		if (rate > 0) sleep_for((double)rounds / rate - elapsed);
	}
}

static void parse(int argc, char **argv) {
	for (int i = 1; i + 1 < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];
		if (!strcmp(name, "--proto")) ws = !strcmp(value, "ws");
		else if (!strcmp(name, "--conns")) conns = atoi(value);
		else if (!strcmp(name, "--seconds")) run_seconds = atof(value);
		else if (!strcmp(name, "--rate")) rate = atof(value);
		else conns = 0;
	}
	if (argc % 2 == 0 || conns < 1) {
		fprintf(stderr, "sendloop: see the head of sendloop.c\n");
		exit(2);
	}
}

int main(int argc, char **argv) {
	char end;
	parse(argc, argv);
	fds = calloc((size_t)conns, sizeof *fds);
	if (!fds) fail("calloc");
	accept_all(listen_anywhere());
	sleep_for(SETTLE_MS / 1e3);
	double cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	run();
	printf("{\"sent\":%ld,\"blocked\":%ld,\"rounds\":%ld,\"broken\":%ld,\"cpu_s\":%.6f}\n", sent, blocked, rounds, broken,
		now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
	fflush(stdout);
	return read(STDIN_FILENO, &end, 1) > 0 || broken ? 1 : 0;
}
