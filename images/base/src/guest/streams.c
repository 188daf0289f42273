#include "guest/streams.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest/allowance.h"
#include "guest/guest.h"

/* Of one container, so that none can take all. */
#define PER_SOURCE (WIRE_STREAMS / 4)
/* A window is granted anew in pieces of at least this. */
#define GRANT (WIRE_TO_GUEST_WINDOW / 2)

/* Streams have numbers below WIRE_STREAMS: odd ones are the relay's to open, even ones from 2 the
 * host's. A number is free when both sides have sent CLOSE, so that no frame is ever taken for
 * another stream's. */
static struct stream {
	bool used;
	bool connecting;
	bool read_ended;  /* the container has sent its last byte */
	bool write_ended; /* the host has sent END */
	bool close_sent, close_received;
	int fd;		      /* -1 once closed */
	struct in_addr source; /* who opened it */
	uint32_t credit;      /* bytes that the host takes */
	uint32_t consumed;    /* bytes the container took since the last WINDOW */
	uint32_t start, held; /* bytes for the container: the ring's */
} streams[WIRE_STREAMS];

/* Pages of these exist once they are used; see release(). */
static unsigned char rings[WIRE_STREAMS][WIRE_TO_GUEST_WINDOW] __attribute__((aligned(4096)));

static unsigned number_of(const struct stream *stream)
{
	return (unsigned)(stream - streams);
}

static void take(struct stream *stream, int fd)
{
	*stream = (struct stream){ .used = true, .fd = fd, .credit = WIRE_TO_HOST_WINDOW };
}

static void release(struct stream *stream)
{
	if (stream->close_sent && stream->close_received) {
		madvise(rings[number_of(stream)], WIRE_TO_GUEST_WINDOW, MADV_DONTNEED);
		stream->used = false;
	}
}

/* Closes the socket; the container sees a reset if asked for. */
static void end(struct stream *stream, bool reset)
{
	const struct linger at_once = { .l_onoff = 1 };
	if (stream->fd >= 0) {
		if (reset)
			setsockopt(stream->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		close(stream->fd);
		stream->fd = -1;
	}
	stream->held = 0;
	if (!stream->close_sent) {
		stream->close_sent = true;
		wire_put(WIRE_CLOSE, number_of(stream), NULL, 0);
	}
	release(stream);
}

static void end_if_finished(struct stream *stream)
{
	if (stream->read_ended && stream->write_ended && stream->held == 0)
		end(stream, false);
}

static void set_options(int fd)
{
	const int yes = 1, idle = 60, interval = 15, count = 4;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	/* A container that has gone says nothing, not even goodbye. */
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

/* --- connections that containers make ---------------------------------------------------------- */

static struct stream *free_stream(struct in_addr source)
{
	static unsigned last = 1;
	struct stream *found = NULL;
	unsigned held = 0;
	for (unsigned i = 0; i < WIRE_STREAMS / 2; i++) {
		unsigned number = (last + 2 * i) % WIRE_STREAMS;
		if (!streams[number].used)
			found = found == NULL ? &streams[number] : found;
		else if (streams[number].source.s_addr == source.s_addr)
			held++;
	}
	if (found == NULL || held >= PER_SOURCE)
		return NULL;
	last = (number_of(found) + 2) % WIRE_STREAMS;
	return found;
}

void streams_accept(int listener)
{
	const struct linger at_once = { .l_onoff = 1 };
	unsigned char payload[2 * WIRE_ENDPOINT];
	for (int i = 0; i < 16 && wire_room(); i++) {
		struct sockaddr_in source, destination;
		socklen_t size = sizeof source;
		int fd = accept4(listener, (struct sockaddr *)&source, &size,
				 SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		struct stream *stream = NULL;
		size = sizeof destination;
		if (getsockname(fd, (struct sockaddr *)&destination, &size) == 0 &&
		    allowance_take(ALLOWANCE_CONNECTION, source.sin_addr))
			stream = free_stream(source.sin_addr);
		if (stream == NULL) {
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
			close(fd);
			continue;
		}
		set_options(fd);
		take(stream, fd);
		stream->source = source.sin_addr;
		wire_write_endpoint(payload, &source);
		wire_write_endpoint(payload + WIRE_ENDPOINT, &destination);
		wire_put(WIRE_OPEN, number_of(stream), payload, sizeof payload);
	}
}

/* --- what the host asks for -------------------------------------------------------------------- */

static _Noreturn void violation(const struct wire_frame *frame)
{
	fail(EXIT_NETWORK, "the host may not send frame %u of stream %u now", frame->kind,
	     frame->stream);
}

/* Counts as the relay's CLOSE. */
static void refuse(struct stream *stream, int why)
{
	if (stream->fd >= 0)
		close(stream->fd);
	stream->fd = -1;
	stream->close_sent = true;
	wire_put_number(WIRE_REFUSED, number_of(stream), (uint32_t)why);
}

static void start_connection(struct stream *stream, const struct sockaddr_in *to,
			     struct network network)
{
	/* Elsewhere leads only to the relay itself. */
	if (!network_holds(network, to->sin_addr) ||
	    to->sin_addr.s_addr == network.address.s_addr) {
		take(stream, -1);
		refuse(stream, ENETUNREACH);
		return;
	}
	take(stream, socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	if (stream->fd < 0) {
		refuse(stream, errno);
		return;
	}
	set_options(stream->fd);
	stream->connecting = true;
	if (connect(stream->fd, (const struct sockaddr *)to, sizeof *to) != 0 &&
	    errno != EINPROGRESS)
		refuse(stream, errno);
}

static void receive_data(struct stream *stream, const struct wire_frame *frame)
{
	unsigned char *ring = rings[frame->stream];
	uint32_t size = (uint32_t)frame->size;
	if (stream->write_ended || stream->held + stream->consumed + size > WIRE_TO_GUEST_WINDOW)
		violation(frame);
	uint32_t end_of_held = (stream->start + stream->held) % WIRE_TO_GUEST_WINDOW;
	uint32_t first = WIRE_TO_GUEST_WINDOW - end_of_held;
	if (first > size)
		first = size;
	memcpy(ring + end_of_held, frame->payload, first);
	memcpy(ring, frame->payload + first, size - first);
	stream->held += size;
}

static void receive_end(struct stream *stream)
{
	stream->write_ended = true;
	if (stream->held == 0)
		shutdown(stream->fd, SHUT_WR);
	end_if_finished(stream);
}

static void receive_close(struct stream *stream)
{
	stream->close_received = true;
	if (stream->close_sent) {
		release(stream);
	} else if (stream->write_ended) {
		/* All that the host sent still goes to the container, and nothing comes back. */
		stream->read_ended = true;
		end_if_finished(stream);
	} else {
		end(stream, true);
	}
}

static bool well_formed(const struct wire_frame *frame)
{
	switch (frame->kind) {
	case WIRE_CONNECT:
		return frame->size == WIRE_ENDPOINT;
	case WIRE_DATA:
		return frame->size > 0;
	case WIRE_WINDOW:
		return frame->size == 4;
	case WIRE_END:
	case WIRE_CLOSE:
		return frame->size == 0;
	default:
		return false;
	}
}

void streams_receive(const struct wire_frame *frame, struct network network)
{
	if (frame->stream == 0 || frame->stream >= WIRE_STREAMS || !well_formed(frame))
		violation(frame);
	struct stream *stream = &streams[frame->stream];
	if (frame->kind == WIRE_CONNECT) {
		if (stream->used || frame->stream % 2 != 0)
			violation(frame);
		const struct sockaddr_in to = wire_endpoint(frame->payload);
		start_connection(stream, &to, network);
		return;
	}
	if (!stream->used || stream->close_received)
		violation(frame);
	if (frame->kind == WIRE_CLOSE) {
		receive_close(stream);
		return;
	}
	if (stream->close_sent)
		return; /* it was under way when the stream ended */
	if (stream->connecting)
		violation(frame);
	if (frame->kind == WIRE_DATA) {
		receive_data(stream, frame);
	} else if (frame->kind == WIRE_END) {
		if (stream->write_ended)
			violation(frame);
		receive_end(stream);
	} else {
		uint32_t more = wire_number(frame->payload);
		if (more == 0 || more > WIRE_TO_HOST_WINDOW - stream->credit)
			violation(frame);
		stream->credit += more;
	}
}

/* --- moving bytes ------------------------------------------------------------------------------ */

static void finish_connection(struct stream *stream)
{
	int error = 0;
	socklen_t size = sizeof error;
	if (getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
		error = errno;
	stream->connecting = false;
	if (error != 0)
		refuse(stream, error);
	else
		wire_put(WIRE_OPENED, number_of(stream), NULL, 0);
}

static void read_some(struct stream *stream)
{
	size_t most = stream->credit < WIRE_PAYLOAD_MAX ? stream->credit : WIRE_PAYLOAD_MAX;
	unsigned char *place = wire_place();
	ssize_t got = read(stream->fd, place, most);
	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (got < 0) {
		end(stream, true);
	} else if (got == 0) {
		stream->read_ended = true;
		wire_put(WIRE_END, number_of(stream), NULL, 0);
		end_if_finished(stream);
	} else {
		stream->credit -= (uint32_t)got;
		wire_put(WIRE_DATA, number_of(stream), place, (size_t)got);
	}
}

static void write_some(struct stream *stream)
{
	unsigned char *ring = rings[number_of(stream)];
	uint32_t most = WIRE_TO_GUEST_WINDOW - stream->start;
	ssize_t done = write(stream->fd, ring + stream->start,
			     stream->held < most ? stream->held : most);
	if (done < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (done < 0) {
		end(stream, true);
		return;
	}
	stream->start = (stream->start + (uint32_t)done) % WIRE_TO_GUEST_WINDOW;
	stream->held -= (uint32_t)done;
	stream->consumed += (uint32_t)done;
	if (stream->held == 0 && stream->write_ended) {
		shutdown(stream->fd, SHUT_WR);
		end_if_finished(stream);
	} else if (stream->consumed >= GRANT && !stream->write_ended) {
		wire_put_number(WIRE_WINDOW, number_of(stream), stream->consumed);
		stream->consumed = 0;
	}
}

static short interest(const struct stream *stream)
{
	if (stream->connecting)
		return POLLOUT;
	short events = stream->held > 0 ? POLLOUT : 0;
	if (!stream->read_ended && stream->credit > 0)
		events |= POLLIN;
	return events;
}

/* In the order of the last streams_watch(), which starts with another stream each time, so that
 * all get their share of the room. */
static struct stream *watched_streams[WIRE_STREAMS];

size_t streams_watch(struct pollfd *watched)
{
	static unsigned first;
	size_t count = 0;
	first++;
	for (unsigned i = 0; i < WIRE_STREAMS; i++) {
		struct stream *stream = &streams[(first + i) % WIRE_STREAMS];
		if (!stream->used || stream->fd < 0)
			continue;
		short events = interest(stream);
		/* One that waits for nothing is left out: its hang-up alone would wake the relay
		 * again and again. */
		if (events == 0)
			continue;
		watched_streams[count] = stream;
		watched[count++] = (struct pollfd){ .fd = stream->fd, .events = events };
	}
	return count;
}

void streams_serve(const struct pollfd *watched, size_t count)
{
	for (size_t i = 0; i < count && wire_room(); i++) {
		struct stream *stream = watched_streams[i];
		short events = watched[i].revents;
		/* A frame of the host may have ended it, or used its number, since. */
		if (events == 0 || !stream->used || stream->fd != watched[i].fd)
			continue;
		if (stream->connecting) {
			finish_connection(stream);
			continue;
		}
		if (events & (POLLOUT | POLLERR) && stream->held > 0)
			write_some(stream);
		if (events & (POLLIN | POLLHUP | POLLERR) && stream->fd >= 0 && !stream->read_ended &&
		    stream->credit > 0)
			read_some(stream);
	}
}
