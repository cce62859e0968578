/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include <rte_mbuf_pool_ops.h>

#include "shim.h"

int bl_errno(void)
{
	return rte_errno;
}

uint16_t bl_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, mbufs, count);
}

/* Without rte_eth_tx_prepare: Bowline fills pseudo-header checksums itself. */
uint16_t bl_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

/*
 * A pool that may cross page borders knows no bus addresses. Where these are the virtual ones, each
 * buffer's is known all the same, and hardware needs it.
 */
static void init_mbuf(struct rte_mempool *pool, void *opaque, void *object, unsigned int index)
{
	struct rte_mbuf *mbuf = object;

	rte_pktmbuf_init(pool, opaque, object, index);
	if (rte_eal_iova_mode() == RTE_IOVA_VA)
		rte_mbuf_iova_set(mbuf, (rte_iova_t)(uintptr_t)mbuf->buf_addr);
}

/*
 * As rte_pktmbuf_pool_create, but with buffers packed over page borders where addresses allow it
 * (IOVA as VA). Otherwise a pool in ordinary pages has one buffer per page, and the af_xdp driver,
 * which registers "number x size" bytes with the kernel, leaves its upper part unregistered:
 * frames in it are dropped without a count (seen with 22.11).
 */
struct rte_mempool *bl_mempool_create(const char *name, uint32_t mbufs, uint32_t cache,
				      uint16_t data_room_bytes)
{
	struct rte_pktmbuf_pool_private private;
	unsigned int flags = rte_eal_iova_mode() == RTE_IOVA_VA ? RTE_MEMPOOL_F_NO_IOVA_CONTIG : 0;
	struct rte_mempool *pool;
	int ret;

	memset(&private, 0, sizeof(private));
	private.mbuf_data_room_size = data_room_bytes;
	pool = rte_mempool_create_empty(name, mbufs, sizeof(struct rte_mbuf) + data_room_bytes,
					cache, sizeof(private), SOCKET_ID_ANY, flags);
	if (pool == NULL)
		return NULL;
	ret = rte_mempool_set_ops_byname(pool, rte_mbuf_best_mempool_ops(), NULL);
	if (ret == 0) {
		rte_pktmbuf_pool_init(pool, &private);
		ret = rte_mempool_populate_default(pool);
	}
	if (ret < 0) {
		rte_mempool_free(pool);
		rte_errno = -ret;
		return NULL;
	}
	rte_mempool_obj_iter(pool, init_mbuf, NULL);
	return pool;
}

int bl_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

void bl_mbuf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

void bl_mbuf_free_bulk(struct rte_mbuf **mbufs, unsigned int count)
{
	rte_pktmbuf_free_bulk(mbufs, count);
}

int bl_eth_info(uint16_t port, struct bl_eth_info *out)
{
	struct rte_eth_dev_info info;
	int ret = rte_eth_dev_info_get(port, &info);

	memset(out, 0, sizeof(*out));
	if (ret != 0)
		return ret;
	out->if_index = info.if_index;
	out->max_rx_pktlen = info.max_rx_pktlen;
	out->min_rx_bufsize = info.min_rx_bufsize;
	out->min_mtu = info.min_mtu;
	out->max_mtu = info.max_mtu;
	out->max_rx_queues = info.max_rx_queues;
	out->max_tx_queues = info.max_tx_queues;
	out->rx_desc_max = info.rx_desc_lim.nb_max;
	out->rx_desc_min = info.rx_desc_lim.nb_min;
	out->rx_desc_align = info.rx_desc_lim.nb_align;
	out->tx_desc_max = info.tx_desc_lim.nb_max;
	out->tx_desc_min = info.tx_desc_lim.nb_min;
	out->tx_desc_align = info.tx_desc_lim.nb_align;
	out->reta_size = info.reta_size;
	out->rx_offload_capa = info.rx_offload_capa;
	out->tx_offload_capa = info.tx_offload_capa;
	out->rss_hash_functions = info.flow_type_rss_offloads &
		(RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
	if (info.driver_name != NULL)
		strncpy(out->driver, info.driver_name, sizeof(out->driver) - 1);
	return 0;
}

int bl_eth_configure(uint16_t port, const struct bl_eth_conf *conf)
{
	struct rte_eth_conf eth;

	memset(&eth, 0, sizeof(eth));
	eth.rxmode.mtu = conf->mtu;
	eth.rxmode.offloads = conf->rx_offloads;
	eth.txmode.offloads = conf->tx_offloads;
	eth.intr_conf.rxq = conf->rx_interrupts ? 1 : 0;
	if (conf->rss_hash_functions != 0) {
		eth.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		eth.rx_adv_conf.rss_conf.rss_hf = conf->rss_hash_functions;
	}
	return rte_eth_dev_configure(port, conf->rx_queues, conf->tx_queues, &eth);
}

int bl_eth_queue_setup(uint16_t port, const struct bl_eth_conf *conf, uint16_t rx_descriptors,
		       uint16_t tx_descriptors, int socket, struct rte_mempool *pool)
{
	struct rte_eth_dev_info info;
	uint16_t queue;
	int ret;

	ret = rte_eth_dev_info_get(port, &info);
	if (ret != 0)
		return ret;
	ret = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx_descriptors, &tx_descriptors);
	if (ret != 0 && ret != -ENOTSUP)
		return ret;
	info.default_rxconf.offloads = conf->rx_offloads;
	info.default_txconf.offloads = conf->tx_offloads;
	for (queue = 0; queue < conf->rx_queues; queue++) {
		ret = rte_eth_rx_queue_setup(port, queue, rx_descriptors, (unsigned int)socket,
					     &info.default_rxconf, pool);
		if (ret != 0)
			return ret;
	}
	for (queue = 0; queue < conf->tx_queues; queue++) {
		ret = rte_eth_tx_queue_setup(port, queue, tx_descriptors, (unsigned int)socket,
					     &info.default_txconf);
		if (ret != 0)
			return ret;
	}
	return 0;
}

int bl_eth_link(uint16_t port, struct bl_eth_link *out)
{
	struct rte_eth_link link;
	int ret;

	memset(&link, 0, sizeof(link));
	ret = rte_eth_link_get_nowait(port, &link);
	out->speed_mbps = link.link_speed;
	out->up = link.link_status == RTE_ETH_LINK_UP;
	out->full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return ret;
}

/* rte_dev_remove closes the port as well; the device goes away, so that it can be probed again. */
int bl_eth_remove(uint16_t port)
{
	struct rte_eth_dev_info info;
	int ret = rte_eth_dev_info_get(port, &info);

	if (ret != 0)
		return ret;
	return rte_dev_remove(info.device);
}

int bl_dma_shares_addresses(int16_t device)
{
	struct rte_dma_info info;

	return rte_dma_info_get(device, &info) == 0 && (info.dev_capa & RTE_DMA_CAPA_SVA) != 0;
}

int bl_dma_setup(int16_t device, uint16_t descriptors)
{
	struct rte_dma_conf conf;
	struct rte_dma_vchan_conf vchan;
	struct rte_dma_info info;
	int ret = rte_dma_info_get(device, &info);

	if (ret != 0)
		return ret;
	if ((info.dev_capa & RTE_DMA_CAPA_MEM_TO_MEM) == 0)
		return -ENOTSUP;
	if (descriptors < info.min_desc)
		descriptors = info.min_desc;
	if (descriptors > info.max_desc)
		descriptors = info.max_desc;
	memset(&conf, 0, sizeof(conf));
	conf.nb_vchans = 1;
	ret = rte_dma_configure(device, &conf);
	if (ret != 0)
		return ret;
	memset(&vchan, 0, sizeof(vchan));
	vchan.direction = RTE_DMA_DIR_MEM_TO_MEM;
	vchan.nb_desc = descriptors;
	ret = rte_dma_vchan_setup(device, 0, &vchan);
	if (ret != 0)
		return ret;
	return rte_dma_start(device);
}

uint16_t bl_dma_copy(int16_t device, const struct bl_dma_copy *copies, uint16_t count)
{
	uint16_t done;

	for (done = 0; done < count; done++) {
		if (rte_dma_copy(device, 0, copies[done].source, copies[done].destination,
				 copies[done].length_bytes, 0) < 0)
			break;
	}
	return done;
}

int bl_dma_submit(int16_t device)
{
	return rte_dma_submit(device, 0);
}

uint16_t bl_dma_completed(int16_t device, uint16_t count, uint16_t *last_index, uint8_t *failed)
{
	bool error = false;
	uint16_t done = rte_dma_completed(device, 0, count, last_index, &error);
	enum rte_dma_status_code status = RTE_DMA_STATUS_SUCCESSFUL;

	/* The failed copy stays in the ring until its status is asked for. */
	*failed = 0;
	if (error && rte_dma_completed_status(device, 0, 1, last_index, &status) == 1) {
		*failed = status != RTE_DMA_STATUS_SUCCESSFUL;
		done += !*failed;
	}
	return done;
}

uint16_t bl_dma_capacity(int16_t device)
{
	return rte_dma_burst_capacity(device, 0);
}
