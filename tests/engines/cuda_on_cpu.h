// CUDA C++ as plain C++, for tests: the kernels' own source runs on the CPU, one block after another.
//
// Each thread of a block is a fiber. A barrier lets the other fibers run up to theirs, so that what CUDA promises of barriers
// and shuffles holds, and no more: between barriers one thread runs while the others stand still, from the last to the first.
#include <cmath>
#include <csetjmp>
#include <cstdint>
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

struct Fiber {
    ucontext_t begin;  // where it starts
    jmp_buf paused;    // where it goes on: unlike swapcontext, a jump asks the kernel for nothing
    bool started, done;
    unsigned shuffles;
    float slots[2];  // what it gives to shuffles, in turn, so that one barrier is enough for each
};

static jmp_buf scheduler;
static std::vector<Fiber> all;
static std::vector<char> stacks;
static unsigned current;
static void (*body)();  // runs the kernel

static void pause()
{
    if (!_setjmp(all[current].paused)) _longjmp(scheduler, 1);
}

static void entry()
{
    body();
    all[current].done = true;
    _longjmp(scheduler, 1);
}

static void go_on(Fiber& fiber)
{
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.paused, 1);
    fiber.started = true;
    setcontext(&fiber.begin);
}

static void block(unsigned count)
{
    all.resize(count);
    stacks.resize(count * STACK);
    for (unsigned i = 0; i < count; i++) {
        all[i].started = all[i].done = false;
        all[i].shuffles = 0;
        getcontext(&all[i].begin);
        all[i].begin.uc_stack.ss_sp = stacks.data() + i * STACK;
        all[i].begin.uc_stack.ss_size = STACK;
        all[i].begin.uc_link = nullptr;
        makecontext(&all[i].begin, entry, 0);
    }
    for (bool some = true; some;) {
        some = false;
        for (unsigned turn = count; turn-- > 0;) {
            if (all[turn].done) continue;
            current = turn;
            threadIdx = {turn % blockDim.x, turn / blockDim.x % blockDim.y, turn / blockDim.x / blockDim.y};
            go_on(all[turn]);
            some = true;
        }
    }
}
}  // namespace fibers

static void __syncthreads() { fibers::pause(); }
static void __threadfence() {}

static float __shfl_xor_sync(unsigned, float value, int distance)
{
    const unsigned slot = fibers::all[fibers::current].shuffles++ % 2;
    fibers::all[fibers::current].slots[slot] = value;
    fibers::pause();
    return fibers::all[fibers::current ^ (unsigned)distance].slots[slot];
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
    fibers::body = [] { wanted(*(A*)given[I]...); };
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
