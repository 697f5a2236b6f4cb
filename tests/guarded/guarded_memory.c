/* Preloaded into a process that tests compiled code: every tensor and workspace of TVM's runtime lies against a page
 * without access, so that the first byte that code touches beyond it ends the process.
 *
 *   side 1, left    the data begins where a page begins, and the page before it has no access
 *   side 2, right   the data ends at a page without access, but for what its alignment needs (less than 64 bytes)
 *   side 3, exact   the data ends at that page whatever its alignment; only code that assumes none can run so
 *   side 0, off
 *
 * Bytes between data and page hold a pattern that is checked when the memory is freed. Freed memory loses its access
 * and is never used again. The pattern fills new memory, too.
 *
 * TVM's runtime takes tensors from posix_memalign and workspaces from TVMBackendAllocWorkspace; no other library's
 * memory is touched. Needs glibc and a symbol of TVM that can be preempted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define REGION_BYTES (1ul << 42)
#define PATTERN 0xA5
#define WORKSPACE_ALIGNMENT 64ul

extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);

typedef struct {
    uint64_t size, start; /* bytes, and where the data begins behind the first page */
} Block;

static char *region;
static Block *blocks; /* by the number of the first page */
static uint64_t next_page = 1;
static int side;
static uint64_t counts[2]; /* tensors, workspaces */

static void fail(const char *what, const void *address) {
    char text[160];
    int length = snprintf(text, sizeof text, "guarded memory: %s at %p\n", what, address);
    (void)!write(2, text, (size_t)length);
    abort();
}

static void on_fault(int number, siginfo_t *info, void *context) {
    char *address = info->si_addr, text[240];
    (void)context;
    if (address >= region && address < region + REGION_BYTES) {
        uint64_t before = (uint64_t)(address - region) / PAGE, behind = before + 1;
        while (before && !blocks[before].size) before--;
        while (behind < next_page && !blocks[behind].size) behind++;
        long past = address - (region + before * PAGE + blocks[before].start + blocks[before].size);
        long ahead = region + behind * PAGE + blocks[behind].start - address;
        int length = snprintf(text, sizeof text,
                              "guarded memory: access at %ld bytes behind the end of a buffer of %lu bytes, and "
                              "%ld bytes before one of %lu bytes\n",
                              past, blocks[before].size, ahead, blocks[behind].size);
        (void)!write(2, text, (size_t)length);
    }
    signal(number, SIG_DFL); /* the instruction runs again and ends the process */
}

static void *guarded(uint64_t size, uint64_t alignment, int where) {
    uint64_t pages = (size + PAGE - 1) / PAGE + (size == 0);
    uint64_t first = __atomic_fetch_add(&next_page, pages + 1, __ATOMIC_RELAXED);
    uint64_t start = 0;
    if ((first + pages + 1) * PAGE > REGION_BYTES) return NULL;
    char *memory = region + first * PAGE;
    if (mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE)) return NULL;
    if (where == 3) start = pages * PAGE - size;
    if (where == 2) start = (pages * PAGE - size) & ~(alignment - 1);
    blocks[first].size = size ? size : 1;
    blocks[first].start = start;
    memset(memory, PATTERN, pages * PAGE);
    return memory + start;
}

static void released(char *data) {
    uint64_t first = (uint64_t)(data - region) / PAGE;
    Block *block = &blocks[first];
    if (!block->size || region + first * PAGE + block->start != data) fail("freed what was not allocated", data);
    uint64_t pages = (block->size + PAGE - 1) / PAGE;
    unsigned char *memory = (unsigned char *)region + first * PAGE;
    for (uint64_t i = 0; i < block->start; i++)
        if (memory[i] != PATTERN) fail("a byte before a buffer was written", memory + i);
    for (uint64_t i = block->start + block->size; i < pages * PAGE; i++)
        if (memory[i] != PATTERN) fail("a byte behind a buffer was written", memory + i);
    block->size = 0;
    madvise(memory, pages * PAGE, MADV_DONTNEED);
    mprotect(memory, pages * PAGE, PROT_NONE);
}

static int is_guarded(const void *data) { return (const char *)data >= region && (const char *)data < region + REGION_BYTES; }

__attribute__((constructor)) static void begin(void) {
    region = mmap(NULL, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    blocks = mmap(NULL, REGION_BYTES / PAGE * sizeof(Block), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED || blocks == MAP_FAILED) fail("no address space", NULL);
}

/* Chooses the side for what is allocated from now on. */
void quantvm_guard(int chosen) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    side = chosen;
}

/* Returns how many tensors (0) or workspaces (1) were guarded so far. */
uint64_t quantvm_guarded(int kind) { return counts[kind]; }

int posix_memalign(void **result, size_t alignment, size_t size) {
    Dl_info caller;
    if (side && region && dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "libtvm_runtime")) {
        *result = guarded(size, alignment, side);
        __atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
    } else {
        *result = __libc_memalign(alignment, size);
    }
    return *result ? 0 : ENOMEM;
}

void free(void *data) {
    if (data && is_guarded(data)) {
        released(data);
    } else {
        __libc_free(data);
    }
}

void *TVMBackendAllocWorkspace(int device, int id, uint64_t size, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    __atomic_fetch_add(&counts[1], 1, __ATOMIC_RELAXED);
    /* code takes workspaces as aligned even where it assumes nothing of tensors */
    return guarded(size, WORKSPACE_ALIGNMENT, side == 3 ? 2 : side);
}

int TVMBackendFreeWorkspace(int device, int id, void *data) {
    (void)device, (void)id;
    released(data);
    return 0;
}
