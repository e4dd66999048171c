// Counts non-finite values in the kernel gradient of a 3x3 convolution with filled scratch memory.
//   kernel_gradient FEATURES CHANNELS ROWS COLUMNS USED BATCH THREADS BYTE f32|bf16
// Columns from USED on are zero, in features and gradient. Scratch memory is filled with BYTE
// (hexadecimal; ff makes every number NaN). A sample of the values is compared with float64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include "oneapi/dnnl/dnnl.hpp"
#include "oneapi/dnnl/dnnl_threadpool.hpp"
using namespace dnnl;
using Type = memory::data_type;

// Runs the work of several threads sequentially.
struct Pool : threadpool_interop::threadpool_iface {
    int threads;
    bool inside = false;
    explicit Pool(int n) : threads(n) {}
    int get_num_threads() const override { return threads; }
    bool get_in_parallel() const override { return inside; }
    uint64_t get_flags() const override { return 0; }
    void parallel_for(int n, const std::function<void(int, int)> &share) override {
        inside = true;
        for (int i = 0; i < n; i++) share(i, n);
        inside = false;
    }
};

float number(const void *data, size_t at, Type type) {
    if (type == Type::f32) return static_cast<const float *>(data)[at];
    const uint32_t bits = uint32_t(static_cast<const uint16_t *>(data)[at]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

memory random_tensor(const memory::desc &md, const engine &cpu, int channels, int columns, int used) {
    memory out(md, cpu);
    auto *to = static_cast<uint16_t *>(out.get_data_handle());
    for (size_t i = 0; i < md.get_size() / 2; i++) {
        const float value = (rand() % 1001 - 500) / 500.f;
        uint32_t bits;
        memcpy(&bits, &value, 4);
        to[i] = int(i / channels % columns) < used ? bits >> 16 : 0;
    }
    return out;
}

size_t element_offset(const memory::desc &md, memory::dims at) {
    const memory::dims strides = md.get_strides(), blocks = md.get_inner_blks();
    const memory::dims axes = md.get_inner_idxs();
    memory::dim offset = 0, step = 1;
    for (int i = md.get_inner_nblks() - 1; i >= 0; step *= blocks[i--]) {
        offset += at[axes[i]] % blocks[i] * step;
        at[axes[i]] /= blocks[i];
    }
    for (int axis = 0; axis < 4; axis++) offset += at[axis] * strides[axis];
    return offset;
}

int main(int argc, char **argv) {
    if (argc != 10) return 2;
    int n[7];
    for (int i = 0; i < 7; i++) n[i] = atoi(argv[i + 1]);
    const int F = n[0], C = n[1], H = n[2], W = n[3], used = n[4], B = n[5];
    const Type type = argv[9] == std::string("f32") ? Type::f32 : Type::bf16;
    dnnl_threadpool_interop_set_max_concurrency(n[6]);
    Pool pool(n[6]);
    engine cpu(engine::kind::cpu, 0);
    stream run = threadpool_interop::make_stream(cpu, &pool);
    const memory::desc x({B, F, H, W}, Type::bf16, memory::format_tag::nhwc);
    const memory::desc y({B, C, H, W}, Type::bf16, memory::format_tag::nhwc);
    const memory::desc any({C, F, 3, 3}, type, memory::format_tag::any);
    primitive_attr attr;
    attr.set_scratchpad_mode(scratchpad_mode::user);
    const dnnl_dims_t one = {1, 1}, none = {0, 0};
    dnnl_primitive_desc_t made = nullptr;
    error::wrap_c_api(dnnl_convolution_backward_weights_primitive_desc_create(&made, cpu.get(),
            dnnl_convolution_direct, x.get(), any.get(), nullptr, y.get(), one, none, one, one,
            nullptr, attr.get()), "no such kernel gradient");
    convolution_backward_weights::primitive_desc pd(made);
    memory src = random_tensor(x, cpu, F, W, used), grad = random_tensor(y, cpu, C, W, used);
    memory out(pd.diff_weights_desc(), cpu), scratch(pd.scratchpad_desc(), cpu);
    const size_t bytes = pd.scratchpad_desc().get_size();
    memset(scratch.get_data_handle(), strtol(argv[8], nullptr, 16), bytes);
    convolution_backward_weights(pd).execute(run, {{DNNL_ARG_SRC, src}, {DNNL_ARG_DIFF_DST, grad},
            {DNNL_ARG_DIFF_WEIGHTS, out}, {DNNL_ARG_SCRATCHPAD, scratch}});
    run.wait();

    const void *features = src.get_data_handle(), *gradient = grad.get_data_handle();
    int wrong = 0;
    double error = 0;
    std::set<int> seen, kernel;
    for (int i = 0; i < C * F * 9; i++) {
        const int o = i / 9 / F, f = i / 9 % F, row = i % 9 / 3, column = i % 3;
        const size_t there = element_offset(pd.diff_weights_desc(), {o, f, row, column});
        const float value = number(out.get_data_handle(), there, type);
        if (!std::isfinite(value)) wrong++, seen.insert(f), kernel.insert(row * 3 + column);
        if (!std::isfinite(value) || i % 1009) continue;
        double sum = 0;
        for (int at = 0; at < B * H * W; at++) {
            const int h = at / W % H + row - 1, w = at % W + column - 1;
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            sum += double(number(gradient, size_t(at) * C + o, Type::bf16))
                    * number(features, (size_t(at / W / H * H + h) * W + w) * F + f, Type::bf16);
        }
        error = std::max(error, std::fabs(value - sum));
    }
    printf("%s: not finite %d of %d", pd.impl_info_str(), wrong, C * F * 9);
    printf(", error %.2g; kernel", error);
    for (int k : kernel) printf(" [%d, %d]", k / 3, k % 3);
    printf("; features");
    for (int f : seen) printf(" %d", f);
    printf("\n");
}
