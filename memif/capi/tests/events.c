/* The program's own event loop, one for both roles: descriptors by callback, interrupts, a listener
 * made elsewhere, reconnecting by timer, memory of the program's own, a refused secret. */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <stddef.h>
#include <sys/un.h>

static int epoll = -1, watched;

struct end {
	memif_socket_handle_t sock;
	memif_conn_handle_t conn;
	int ups, downs, interrupts, frames;
};

static int fd_update(memif_fd_event_t event, void *ctx)
{
	struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = event.private_ctx};
	CHECK(ctx != NULL);
	if (event.type & MEMIF_FD_EVENT_DEL) {
		watched--;
		CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, event.fd, NULL) == 0);
		return 0;
	}
	CHECK(event.type == MEMIF_FD_EVENT_READ);
	watched++;
	return epoll_ctl(epoll, EPOLL_CTL_ADD, event.fd, &wanted);
}

static void turn(void)
{
	struct epoll_event events[8];
	int n = epoll_wait(epoll, events, 8, 20);
	for (int i = 0; i < n; i++)
		OK(memif_control_fd_handler(events[i].data.ptr, MEMIF_FD_EVENT_READ));
}

static int up(memif_conn_handle_t conn, void *ctx)
{
	((struct end *)ctx)->ups++;
	OK(memif_refill_queue(conn, 0, -1, 0));
	OK(memif_set_rx_mode(conn, MEMIF_RX_MODE_INTERRUPT, 0));
	return 0;
}

static int down(memif_conn_handle_t conn, void *ctx)
{
	(void)conn;
	((struct end *)ctx)->downs++;
	return 0;
}

/* The client echoes, the server counts. */
static int on_interrupt(memif_conn_handle_t conn, void *ctx, uint16_t qid)
{
	struct end *end = ctx;
	memif_buffer_t in[8], out[8];
	uint16_t n = 0, allocated = 0, sent = 0;
	int err;
	end->interrupts++;
	do {
		err = memif_rx_burst(conn, qid, in, 8, &n);
		CHECK(err == MEMIF_ERR_SUCCESS || err == MEMIF_ERR_NOBUF);
		for (int i = 0; i < n; i++)
			CHECK(same(in[i].data, in[i].len, end->frames + i, 0));
		end->frames += n;
		if (n > 0 && memif_get_listener_fd(memif_get_socket_handle(conn)) < 0) {
			OK(memif_buffer_alloc(conn, qid, out, n, &allocated, 200));
			for (int i = 0; i < n; i++)
				memcpy(out[i].data, in[i].data, in[i].len);
			OK(memif_tx_burst(conn, qid, out, n, &sent));
		}
		OK(memif_refill_queue(conn, qid, n, 0));
	} while (err == MEMIF_ERR_NOBUF);
	return 0;
}

static int listener(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t len = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	memcpy(address.sun_path + 1, name, strlen(name));
	CHECK(bind(fd, (struct sockaddr *)&address, len) == 0 && listen(fd, 8) == 0);
	return fd;
}

static void make_socket(struct end *end, const char *name)
{
	memif_socket_args_t args = socket_args(name);
	args.on_control_fd_update = fd_update;
	OK(memif_create_socket(&end->sock, &args, end));
}

static memif_conn_args_t conn_args(struct end *end, int is_master, const char *secret)
{
	memif_conn_args_t args = {.socket = end->sock, .is_master = is_master, .interface_id = 1};
	snprintf((char *)args.secret, sizeof(args.secret), "%s", secret);
	return args;
}

static int make(struct end *end, int is_master, const char *secret)
{
	memif_conn_args_t args = conn_args(end, is_master, secret);
	return memif_create(&end->conn, &args, up, down, on_interrupt, end);
}

/* Why the interface was disconnected last, when that is known. */
static const char *wait_for_error(struct end *end)
{
	static char text[2048];
	memif_details_t md = {.error = (uint8_t *)text};
	text[0] = 0;
	WAIT(md.error[0], turn(); OK(memif_get_details(end->conn, &md, text, sizeof(text))));
	CHECK(md.link_up_down == 0);
	return (const char *)md.error;
}

static void echo(struct end *server, int frames)
{
	int before = server->frames;
	for (int i = 0; i < frames; i++) {
		memif_buffer_t buf;
		uint16_t n = 0;
		OK(memif_buffer_alloc(server->conn, 0, &buf, 1, &n, 200));
		fill(buf.data, 200, before + i);
		OK(memif_tx_burst(server->conn, 0, &buf, 1, &n));
		WAIT(server->frames == before + i + 1, turn());
	}
}

/* Memory of the program's own. */
static void *memory;
static uint32_t memory_size, next_offset;
static int memory_fd = -1, given_back;

static int add_region(void **addr, uint32_t size, int *fd, void *ctx)
{
	CHECK(ctx != NULL);
	memory_fd = memfd_create("own", MFD_ALLOW_SEALING);
	CHECK(ftruncate(memory_fd, size) == 0);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	CHECK(memory != MAP_FAILED);
	memory_size = size;
	*addr = memory;
	*fd = memory_fd;
	return 0;
}

static uint32_t next_buffer(void *ctx)
{
	uint32_t offset = next_offset;
	CHECK(ctx != NULL);
	next_offset = (next_offset + 2048) % memory_size;
	return offset;
}

static void *region_addr(uint32_t size, int fd, void *ctx)
{
	(void)size, (void)fd, (void)ctx;
	return NULL;
}

static int del_region(void *addr, uint32_t size, int fd, void *ctx)
{
	CHECK(ctx != NULL);
	CHECK(addr == memory && size == memory_size && fd == memory_fd);
	CHECK(munmap(addr, size) == 0 && close(fd) == 0);
	given_back++;
	return 0;
}

/* The server's mapping of what the client brings. */
static void *mapped;
static uint32_t mapped_size;
static int mapped_fd = -1, unmapped;

static void *map_region(uint32_t size, int fd, void *ctx)
{
	CHECK(ctx != NULL);
	mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(mapped != MAP_FAILED);
	mapped_size = size;
	mapped_fd = fd;
	return mapped;
}

static int unmap_region(void *addr, uint32_t size, int fd, void *ctx)
{
	CHECK(ctx != NULL);
	CHECK(addr == mapped && size == mapped_size && fd == mapped_fd);
	CHECK(munmap(addr, size) == 0 && close(fd) == 0);
	unmapped++;
	return 0;
}

static int open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* What a peer brought is closed on a thread: the number that stayed for 200 ms. */
static int settled_files(void)
{
	int files = open_files();
	for (double since = seconds(); seconds() < since + 0.2; turn())
		if (open_files() != files) {
			files = open_files();
			since = seconds();
		}
	return files;
}

/* Neither side takes more than it was made for, and modes are each side's own affair. */
static void other_terms(struct end *server, const char *name)
{
	struct end client = {0};
	memif_conn_args_t args;
	int ups = server->ups, downs = server->downs;
	make_socket(&client, name);
	args = conn_args(&client, 0, "hush");
	args.mode = MEMIF_INTERFACE_MODE_IP;
	OK(memif_create(&client.conn, &args, up, down, on_interrupt, &client));
	WAIT(client.ups == 1 && server->ups == ups + 1, turn());
	server->frames = 0;
	echo(server, 20);
	OK(memif_delete(&client.conn));
	WAIT(server->downs == downs + 1, turn());
	args.num_s2m_rings = 2;
	OK(memif_create(&client.conn, &args, up, down, on_interrupt, &client));
	CHECK(strstr(wait_for_error(&client), "Invalid S2M ring index 1"));
	CHECK(client.ups == 1 && server->ups == ups + 1);
	OK(memif_delete(&client.conn));
	OK(memif_delete_socket(&client.sock));
}

static void own_memory(struct end *server, const char *name)
{
	struct end client = {0};
	memif_buffer_t buf;
	uint16_t n = 0;
	char text[2048];
	memif_details_t md;
	int ups = server->ups, downs = server->downs, files = settled_files();
	memif_register_external_region(server->sock, NULL, map_region, unmap_region, NULL);
	make_socket(&client, name);
	memif_register_external_region(client.sock, add_region, region_addr, del_region, next_buffer);
	/* Whoever is refused has its memory back as well. */
	OK(make(&client, 0, "guess"));
	CHECK(strstr(wait_for_error(&client), "Incorrect secret"));
	CHECK(given_back == 1 && mapped == NULL);
	OK(memif_delete(&client.conn));
	OK(make(&client, 0, "hush"));
	WAIT(client.ups == 1 && server->ups == ups + 1, turn());
	OK(memif_get_details(client.conn, &md, text, sizeof(text)));
	CHECK(md.regions_num == 2 && md.regions[1].is_external && md.regions[1].addr == memory);
	CHECK(md.regions[1].fd == memory_fd && fcntl(md.regions[0].fd, F_GETFD) >= 0);
	OK(memif_get_details(server->conn, &md, text, sizeof(text)));
	CHECK(md.regions_num == 2 && md.regions[1].is_external && md.regions[1].addr == mapped);
	CHECK(md.regions[1].fd == mapped_fd && md.regions[1].size == mapped_size);
	CHECK(!md.regions[0].is_external && fcntl(md.regions[0].fd, F_GETFD) >= 0);
	server->frames = 0;
	echo(server, 50);
	OK(memif_buffer_alloc(client.conn, 0, &buf, 1, &n, 64));
	CHECK((uint8_t *)buf.data >= (uint8_t *)memory);
	CHECK((uint8_t *)buf.data < (uint8_t *)memory + memory_size);
	OK(memif_buffer_alloc(server->conn, 0, &buf, 1, &n, 64));
	CHECK((uint8_t *)buf.data >= (uint8_t *)mapped);
	CHECK((uint8_t *)buf.data < (uint8_t *)mapped + mapped_size);
	OK(memif_delete(&client.conn));
	/* Both interfaces: the one that was refused was deleted as well. */
	CHECK(given_back == 2 && client.downs == 2);
	WAIT(server->downs == downs + 1, turn());
	CHECK(unmapped == 1);
	OK(memif_delete_socket(&client.sock));
	memif_register_external_region(server->sock, NULL, NULL, NULL, NULL);
	WAIT(open_files() == files, turn());
}

int main(int argc, char **argv)
{
	struct end server = {0}, client = {0}, stranger = {0};
	struct itimerspec timer = {.it_value.tv_nsec = 30000000, .it_interval.tv_nsec = 30000000};
	CHECK(argc == 2);
	epoll = epoll_create1(0);
	/* The client is first; its timer finds the server when that comes. */
	make_socket(&client, argv[1]);
	OK(memif_set_connection_request_timer(client.sock, timer));
	OK(make(&client, 0, "hush"));
	make_socket(&server, argv[1]);
	int listening = listener(argv[1]);
	OK(memif_set_listener_fd(server.sock, listening));
	OK(make(&server, 1, "hush"));
	WAIT(server.ups && client.ups, turn());
	echo(&server, 300);
	CHECK(client.interrupts >= 300 && server.interrupts >= 300);
	/* Another one does not know the secret, a third finds the interface taken. */
	make_socket(&stranger, argv[1]);
	OK(make(&stranger, 0, "guess"));
	CHECK(strstr(wait_for_error(&stranger), "Already connected"));
	OK(memif_delete(&stranger.conn));
	/* Lost and found: the server's interface goes and comes back. */
	for (int round = 1; round <= 3; round++) {
		OK(memif_delete(&server.conn));
		WAIT(client.downs == round, turn());
		/* What the program gave stays: it may not be able to make another. */
		CHECK(memif_get_listener_fd(server.sock) == listening);
		OK(make(&server, 1, "hush"));
		WAIT(client.ups == round + 1 && server.ups == round + 1, turn());
		server.frames = client.frames = 0;
		echo(&server, 20);
	}
	OK(memif_delete(&client.conn));
	WAIT(server.downs == 4, turn());
	OK(make(&stranger, 0, "guess"));
	CHECK(strstr(wait_for_error(&stranger), "Incorrect secret"));
	OK(memif_delete(&stranger.conn));
	other_terms(&server, argv[1]);
	own_memory(&server, argv[1]);
	OK(memif_delete(&server.conn));
	OK(memif_delete_socket(&server.sock));
	OK(memif_delete_socket(&client.sock));
	OK(memif_delete_socket(&stranger.sock));
	CHECK(watched == 0 && "every descriptor was taken back");
	OK(memif_contain_sigbus());
	puts("ok");
	return 0;
}
