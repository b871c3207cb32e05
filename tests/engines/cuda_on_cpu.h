// CUDA C++ as plain C++, for tests: the kernels' own source runs on the CPU, one block after another.
//
// Each thread of a block is a fiber. A barrier lets the other fibers run up to theirs, so that what CUDA promises of barriers
// and shuffles holds, and no more: between barriers one thread runs while the others stand still, from the last to the first.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fibers {
constexpr std::size_t STACK = 64 * 1024;
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<char> stacks;
static std::vector<uint64_t> slots;
static unsigned current;
static bool (*body)();  // runs the kernel
static std::vector<bool> done;

static void entry()
{
    body();
    done[current] = true;
    swapcontext(&contexts[current], &scheduler);
}

static void pause() { swapcontext(&contexts[current], &scheduler); }

static void block(unsigned count)
{
    contexts.resize(count);
    stacks.resize(count * STACK);
    slots.assign(count, 0);
    done.assign(count, false);
    for (unsigned i = 0; i < count; i++) {
        getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = stacks.data() + i * STACK;
        contexts[i].uc_stack.ss_size = STACK;
        contexts[i].uc_link = nullptr;
        makecontext(&contexts[i], entry, 0);
    }
    for (unsigned left = count; left > 0;) {
        for (unsigned turn = count; turn-- > 0;) {
            if (done[turn]) continue;
            current = turn;
            threadIdx = {turn % blockDim.x, turn / blockDim.x % blockDim.y, turn / blockDim.x / blockDim.y};
            swapcontext(&scheduler, &contexts[turn]);
            if (done[turn]) left--;
        }
    }
}
}  // namespace fibers

static void __syncthreads() { fibers::pause(); }
static void __threadfence() {}

static float __shfl_xor_sync(unsigned, float value, int distance)
{
    std::memcpy(&fibers::slots[fibers::current], &value, sizeof value);
    fibers::pause();
    std::memcpy(&value, &fibers::slots[fibers::current ^ (unsigned)distance], sizeof value);
    fibers::pause();
    return value;
}

static unsigned atomicInc(unsigned* at, unsigned most)
{
    const unsigned before = *at;
    *at = before >= most ? 0 : before + 1;
    return before;
}

static float from_half(unsigned short bits)
{
    _Float16 value;
    std::memcpy(&value, &bits, sizeof value);
    return (float)value;
}

// Runs a kernel as cuLaunchKernel does: `arguments` are the addresses of its arguments.
template <class... A, std::size_t... I>
static void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments, std::index_sequence<I...>)
{
    static void (*wanted)(A...);
    static void** given;
    wanted = kernel;
    given = arguments;
    fibers::body = [] { wanted(*(A*)given[I]...); return true; };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = grid[0]; x-- > 0;) {
                blockIdx = {x, y, z};
                fibers::block(block[0] * block[1] * block[2]);
            }
}

template <class... A>
static void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments)
{
    launch(kernel, grid, block, arguments, std::index_sequence_for<A...>());
}
