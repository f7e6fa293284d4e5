// The policy on the device: the decision at an exit, and the packing of the remaining rows.
//
// kernels.py describes the arguments. The tests compile this file with a C++ compiler: a kernel is then an ordinary function
// on host memory, with the same argument. Each step of the kernel is a function of one thread. Threads synchronize between
// two steps, so that only the next step reads the values that a step writes for other threads.
//
// Criteria are those of ee_export/policy/criteria.py, in double and in its order of operations. Compile without contraction
// to fused multiply-add (nvcc and NVRTC: -fmad=false, g++: -ffp-contract=off), or scores differ in their last digits.

#ifdef __CUDACC_RTC__  // NVRTC has this system call, but does not declare it without the headers of a toolkit
extern "C" __device__ void cudaGraphSetConditional(unsigned long long handle, unsigned value);
#endif

#ifdef __CUDACC__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define FUNCTION static __device__ inline
#define SET_BITS(word, bits) atomicOr(&(word), bits)
#define COUNT_BITS(word) __popc(word)
#define ALL_THREADS(step) step(a, block, threadIdx.x, blockDim.x); __syncthreads();
// A thread's share of a loop mostly has one turn or none. The compiler's own unrolling would double the code, and at batch 1
// the time of a decision is that of fetching cold code.
#define UNROLL(times) _Pragma(#times)
#define EACH(at, count) UNROLL(unroll 1) for (int at = thread; at < (count); at += threads)
#else
#include <cmath>
#include <vector>
using std::exp; using std::fabs; using std::log; using std::log1p;
extern "C" { int ee_threads = 32; int ee_backwards = 0; }  // number and order of the threads on the host
#define KERNEL(threads) extern "C" void
#define FUNCTION static inline
#define SET_BITS(word, bits) ((word) |= (bits))
#define COUNT_BITS(word) __builtin_popcount(word)
#define UNROLL(times)
#define EACH(at, count) for (int at = thread; at < (count); at += threads)
#define ALL_THREADS(step) \
    for (int at = 0; at < ee_threads; ++at) step(a, block, ee_backwards ? ee_threads - 1 - at : at, ee_threads);
#endif

#define ALL_CLASSES(c) UNROLL(unroll 4) for (int c = 0; c < classes; ++c)

enum { MAX_ROWS = 1024, WORD = 32 };
enum { FIRST = 1, CONDITIONAL = 2, STABLE = 4 };
// The codes of the criteria, as in ee_export/policy/criteria.py.
enum { MAX_PROBABILITY = 0, ENTROPY = 1, MARGIN = 2, PATIENCE = 3, GATE = 4, FAILURE_PREDICTION = 5 };

struct Decide {
    const float *logits, *gates;
    const double *policy;
    const int *tokens;
    double *trail, *scratch;
    const int *rows;
    int *alive, *ids, *source, *exits;
    double *scores;
    float *answers;
    int *value;
    const int *buckets;
    unsigned long long handle;
    int exit, exit_count, classes, bucket_count, flags, unused;
};

// Memory that the threads of a launch share.
struct Block {
    double *scratch;           // [rows, 2 C + 2]: see Row
    int rows;
    unsigned stays[MAX_ROWS / WORD];  // a bit for each row
    int page[MAX_ROWS];        // of each row
    int hole[MAX_ROWS];        // rows that exit, below the number of remaining rows, in order
};

// A row's part of the scratch.
struct Row {
    double *values;  // [C] calibrated logits, then their powers, then probabilities
    double *terms;   // [C] p log p
    double *highest; // the largest calibrated logit, then the sum of the powers
    double *checked; // sum of the calibrated logits, which is finite if they are
};

// An exit's part of the policy block.
struct Rule {
    int criterion;
    const double *scale, *bias, *limits, *gate, *weights;
};

// State of a page between exits.
struct Trail {
    double *before;  // [C] probabilities of the exit before
    double *counts;  // [C] number of exits before that gave each answer
    double *visited, *answer, *run;  // number of exits before, the last one's answer, number of exits in a row that gave it
};

FUNCTION Row row_of(const Decide &a, const Block &block, int row) {
    double *at = block.scratch + row * (2 * a.classes + 2);
    return {at, at + a.classes, at + 2 * a.classes, at + 2 * a.classes + 1};
}

FUNCTION Rule rule_of(const Decide &a) {
    const int table = a.exit_count * a.classes, at = a.exit * a.classes;
    const double *scale = a.policy + 2, *gates = scale + 3 * table, *weights = gates + 2 * a.exit_count;
    return {*reinterpret_cast<const int *>(a.policy), scale + at, scale + table + at, scale + 2 * table + at,
            gates + 2 * a.exit, weights + a.exit * (a.classes + 7)};
}

FUNCTION Trail trail_of(const Decide &a, int page) {
    double *at = a.trail + (long long)page * (2 * a.classes + 3);
    double *last = at + 2 * a.classes;
    return {at, at + a.classes, last, last + 1, last + 2};
}

FUNCTION bool stays(const Block &block, int row) { return block.stays[row / WORD] >> row % WORD & 1; }

// Number of remaining rows below this one.
FUNCTION int stay_below(const Block &block, int row) {
    int count = 0;
    UNROLL(unroll 1) for (int word = 0; word < row / WORD; ++word) count += COUNT_BITS(block.stays[word]);
    return row % WORD ? count + COUNT_BITS(block.stays[row / WORD] & ((1u << row % WORD) - 1)) : count;
}

FUNCTION double sigmoid(double x) { return x >= 0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x)); }

// ---- the criteria, for one row of probabilities -----------------------------------------------------------------------

FUNCTION int top(const double *p, int classes) {
    int best = 0;
    ALL_CLASSES(c) if (p[c] > p[best]) best = c;
    return best;
}

FUNCTION double entropy(const double *terms, int classes) {
    double total = 0.0;
    ALL_CLASSES(c) total += terms[c];
    const double score = 1.0 - -total / log((double)classes);
    return score > 1.0 ? 1.0 : score > 0.0 ? score : 0.0;
}

FUNCTION double margin(const double *p, int answer, int classes) {
    double second = -1.0;
    ALL_CLASSES(c) if (c != answer && p[c] > second) second = p[c];
    return p[answer] - second;
}

FUNCTION double failure_prediction(const Row &row, const Trail &trail, const double *w, int answer, int tokens, int classes) {
    const double *p = row.values, seen = *trail.visited;
    double moved = 0.0;
    if (seen > 0) {
        ALL_CLASSES(c) moved += fabs(p[c] - trail.before[c]);
        moved /= 2;
    }
    double highest = p[answer] > 1e-6 ? p[answer] : 1e-6;
    if (highest > 1 - 1e-6) highest = 1 - 1e-6;
    double total = w[0] * (log(highest / (1 - highest)) / 4);
    total += w[1] * margin(p, answer, classes);
    total += w[2] * entropy(row.terms, classes);
    total += w[3] * (seen > 0 ? trail.counts[answer] / seen : 1.0);
    total += w[4] * moved;
    total += w[5] * (log1p((double)tokens) / 6);
    total += w[6 + answer];
    return sigmoid(w[6 + classes] + total);
}

// ---- the steps of a decision ------------------------------------------------------------------------------------------

// The page of each row, and its calibrated logits.
FUNCTION void begin(const Decide &a, Block &block, int thread, int threads) {
    const int found = *a.rows, rows = found < 0 ? 0 : found < MAX_ROWS ? found : MAX_ROWS;
    const Rule rule = rule_of(a);
    if (thread == 0) block.rows = rows;
    EACH(word, MAX_ROWS / WORD) block.stays[word] = 0;
    EACH(row, rows) block.page[row] = a.flags & FIRST ? row : a.ids[row];
    EACH(item, rows * a.classes) {
        const int row = item / a.classes, c = item % a.classes;
        row_of(a, block, row).values[c] = a.logits[item] * rule.scale[c] + rule.bias[c];
    }
}

FUNCTION void find_highest(const Decide &a, Block &block, int thread, int threads) {
    const int classes = a.classes;
    EACH(at, block.rows) {
        const Row row = row_of(a, block, at);
        double highest = row.values[0], checked = 0.0;
        ALL_CLASSES(c) {
            if (row.values[c] > highest) highest = row.values[c];
            checked += row.values[c];
        }
        *row.highest = highest;
        *row.checked = checked;
    }
}

FUNCTION void raise_to_powers(const Decide &a, Block &block, int thread, int threads) {
    EACH(item, block.rows * a.classes) {
        const Row row = row_of(a, block, item / a.classes);
        const int c = item % a.classes;
        row.values[c] = exp(row.values[c] - *row.highest);
    }
}

FUNCTION void add_powers(const Decide &a, Block &block, int thread, int threads) {
    const int classes = a.classes;
    EACH(at, block.rows) {
        const Row row = row_of(a, block, at);
        double total = 0.0;
        ALL_CLASSES(c) total += row.values[c];
        *row.highest = total;
    }
}

FUNCTION void divide(const Decide &a, Block &block, int thread, int threads) {
    const int criterion = rule_of(a).criterion;
    const bool wants_terms = criterion == ENTROPY || criterion == FAILURE_PREDICTION;
    EACH(item, block.rows * a.classes) {
        const Row row = row_of(a, block, item / a.classes);
        const int c = item % a.classes;
        const double p = row.values[c] / *row.highest;
        row.values[c] = p;
        if (wants_terms) row.terms[c] = p > 0.0 ? p * log(p) : 0.0;
    }
}

// Scores, exits of the pages that exit, and trails of the others.
FUNCTION void judge(const Decide &a, Block &block, int thread, int threads) {
    const Rule rule = rule_of(a);
    const int classes = a.classes;
    EACH(at, block.rows) {
        const Row row = row_of(a, block, at);
        const int page = block.page[at];
        const double go = a.gates ? a.gates[at] * rule.gate[0] + rule.gate[1] : 0.0;
        const double bad = *row.checked - *row.checked + (go - go);  // NaN if a number is not finite
        if (bad != 0.0) {
            a.exits[page] = -1 - a.exit;
            a.scores[page] = bad;
            continue;
        }
        const Trail trail = trail_of(a, page);
        if (a.flags & FIRST) {
            *trail.visited = 0.0;
            ALL_CLASSES(c) trail.counts[c] = 0.0;
        }
        const int answer = top(row.values, classes);
        const double run = *trail.visited > 0 && *trail.answer == answer ? *trail.run + 1.0 : 1.0;
        double score = row.values[answer];
        if (rule.criterion == ENTROPY) score = entropy(row.terms, classes);
        else if (rule.criterion == MARGIN) score = margin(row.values, answer, classes);
        else if (rule.criterion == PATIENCE) score = 1.0 - 1.0 / run;
        else if (rule.criterion == GATE && a.gates) score = sigmoid(go);
        else if (rule.criterion == FAILURE_PREDICTION)
            score = failure_prediction(row, trail, rule.weights, answer, a.tokens ? a.tokens[page] : 0, classes);
        a.scores[page] = score;
        if (a.exit == a.exit_count - 1 || score >= rule.limits[answer]) {
            a.exits[page] = a.exit;
            continue;
        }
        SET_BITS(block.stays[at / WORD], 1u << at % WORD);
        ALL_CLASSES(c) trail.before[c] = row.values[c];
        trail.counts[answer] += 1.0;
        *trail.visited += 1.0;
        *trail.answer = answer;
        *trail.run = run;
    }
}

// Logits of the pages, and the holes that pages which exit make among the first rows.
FUNCTION void leave(const Decide &a, Block &block, int thread, int threads) {
    EACH(item, block.rows * a.classes) {
        const int row = item / a.classes, c = item % a.classes;
        a.answers[(long long)block.page[row] * a.classes + c] = a.logits[item];
    }
    const int alive = stay_below(block, block.rows);
    EACH(row, alive) {
        if (!stays(block, row)) block.hole[row - stay_below(block, row)] = row;
    }
}

// The new place of each remaining row, and the value of the graph's next condition.
FUNCTION void pack(const Decide &a, Block &block, int thread, int threads) {
    const int alive = stay_below(block, block.rows);
    EACH(row, block.rows) {
        if (!stays(block, row)) continue;
        int place = row;
        if (a.flags & STABLE) place = stay_below(block, row);
        else if (row >= alive) place = block.hole[stay_below(block, row) - stay_below(block, alive)];
        a.source[place] = row;
        a.ids[place] = block.page[row];
    }
    if (thread != 0) return;
    unsigned value = alive > 0;
    if (a.buckets) {
        value = 0;
        while ((int)value < a.bucket_count && (alive == 0 || a.buckets[value] < alive)) ++value;
    }
    *a.alive = alive;
    if (a.value) *a.value = (int)value;
#ifdef __CUDACC__
    if (a.flags & CONDITIONAL) cudaGraphSetConditional(a.handle, value);
#endif
}

KERNEL(1024) ee_decide(const Decide a) {
#ifdef __CUDACC__
    extern __shared__ double shared[];
    __shared__ Block block;
    if (threadIdx.x == 0) block.scratch = a.scratch ? a.scratch : shared;
    __syncthreads();
#else
    Block block;
    std::vector<double> shared(a.scratch ? 0 : (std::size_t)MAX_ROWS * (2 * a.classes + 2));
    block.scratch = a.scratch ? a.scratch : shared.data();
#endif
    ALL_THREADS(begin)
    ALL_THREADS(find_highest)
    ALL_THREADS(raise_to_powers)
    ALL_THREADS(add_powers)
    ALL_THREADS(divide)
    ALL_THREADS(judge)
    ALL_THREADS(leave)
    ALL_THREADS(pack)
}

// ---- moving rows ------------------------------------------------------------------------------------------------------

struct Tensor {
    unsigned long long src, dst, row_bytes;
};

struct Gather {
    const Tensor *tensors;
    const int *source, *alive;
    int tensor_count, unused;
};

struct alignas(16) Sixteen {
    unsigned long long low, high;
};

// Four loads run before the first store waits for one.
template <typename Unit>
FUNCTION void move_units(const Tensor &tensor, int from, int to, long long thread, long long threads) {
    const Unit *src = reinterpret_cast<const Unit *>(tensor.src + from * tensor.row_bytes);
    Unit *dst = reinterpret_cast<Unit *>(tensor.dst + to * tensor.row_bytes);
    const long long count = tensor.row_bytes / sizeof(Unit);
    for (long long first = thread; first < count; first += 4 * threads) {
        Unit held[4];
        for (int k = 0; k < 4; ++k) if (first + k * threads < count) held[k] = src[first + k * threads];
        for (int k = 0; k < 4; ++k) if (first + k * threads < count) dst[first + k * threads] = held[k];
    }
}

// One row of one tensor, in the largest units that divide its addresses and its length.
FUNCTION void move_row(const Gather &a, int at, int row, long long thread, long long threads) {
    if (row >= *a.alive) return;
    const Tensor tensor = a.tensors[at];
    const int from = a.source[row];
    if (tensor.src == tensor.dst && from == row) return;
    const unsigned odd = (unsigned)(tensor.src | tensor.dst | tensor.row_bytes);
    if (odd % 16 == 0) move_units<Sixteen>(tensor, from, row, thread, threads);
    else if (odd % 8 == 0) move_units<unsigned long long>(tensor, from, row, thread, threads);
    else if (odd % 4 == 0) move_units<unsigned>(tensor, from, row, thread, threads);
    else if (odd % 2 == 0) move_units<unsigned short>(tensor, from, row, thread, threads);
    else move_units<unsigned char>(tensor, from, row, thread, threads);
}

KERNEL(256) ee_gather_rows(const Gather a) {
#ifdef __CUDACC__
    move_row(a, blockIdx.z, blockIdx.y, (long long)blockIdx.x * blockDim.x + threadIdx.x, (long long)gridDim.x * blockDim.x);
#else
    for (int at = 0; at < a.tensor_count; ++at)
        for (int row = 0; row < *a.alive; ++row)
            for (int thread = 0; thread < ee_threads; ++thread) move_row(a, at, row, thread, ee_threads);
#endif
}
