/* What every program of these tests needs. */
#ifndef CHECK_H
#define CHECK_H

#include <libmemif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

#define OK(call)                                                                                   \
	do {                                                                                       \
		int err_ = (call);                                                                 \
		if (err_ != MEMIF_ERR_SUCCESS) {                                                   \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,              \
				memif_strerror(err_));                                             \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static inline double seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* Runs `step` until `condition` holds, for at most ten seconds. */
#define WAIT(condition, step)                                                                      \
	do {                                                                                       \
		double end_ = seconds() + 10;                                                      \
		while (!(condition)) {                                                             \
			step;                                                                      \
			CHECK(seconds() < end_ && "waited for " #condition);                       \
		}                                                                                  \
	} while (0)

static inline memif_socket_args_t socket_args(const char *name)
{
	memif_socket_args_t args = {0};
	snprintf(args.path, sizeof(args.path), "@%s", name);
	snprintf(args.app_name, sizeof(args.app_name), "check");
	return args;
}

static inline void fill(uint8_t *data, uint32_t len, uint32_t seed)
{
	for (uint32_t i = 0; i < len; i++)
		data[i] = (uint8_t)(seed * 31 + i * 7);
}

static inline int same(const uint8_t *data, uint32_t len, uint32_t seed, uint32_t from)
{
	for (uint32_t i = 0; i < len; i++)
		if (data[i] != (uint8_t)(seed * 31 + (from + i) * 7))
			return 0;
	return 1;
}

#endif
