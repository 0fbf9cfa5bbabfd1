// Drives a fuzz target where there is no libFuzzer: inputs are mutated, and those that reach a new edge (gcc's trace-pc) are kept and mutated on.
//
//     edges SECONDS EXECUTIONS CORPUS [SEED]      stops at whichever comes first (0: never); ends with a line of JSON
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <vector>
#include <unistd.h>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t MAP = 1 << 16, LONGEST = 4096, HANG = 10;
uint8_t hits[MAP], seen[MAP];
thread_local uint32_t before;
Bytes current;
std::filesystem::path folder;

void write(const Bytes& bytes, const std::string& name) {
    std::ofstream(folder / name, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), long(bytes.size()));
}

void hung(int) {
    write(current, "hang");
    constexpr char said[] = "a hang of over 10 s\n";
    (void)!::write(2, said, sizeof said - 1);
    _exit(70);
}

void died() { write(current, "crash"); }

void aborted(int) {
    died();
    _exit(71);
}

bool news() {  // counts in steps, as AFL has them
    bool found = false;
    for (size_t i = 0; i < MAP; i++) {
        uint64_t eight;
        if (i % 8 == 0 && (std::memcpy(&eight, hits + i, 8), !eight)) {
            i += 7;
            continue;
        }
        if (!hits[i]) continue;
        const uint8_t step = hits[i] < 4 ? uint8_t(1 << (hits[i] - 1)) : hits[i] < 16 ? 8 : hits[i] < 128 ? 16 : 32;
        if (step & ~seen[i]) seen[i] |= step, found = true;
        hits[i] = 0;
    }
    return found;
}

Bytes mutated(const std::vector<Bytes>& pool, std::mt19937_64& random) {
    Bytes out = pool[random() % pool.size()];
    for (uint64_t times = 1 + random() % 8; times; times--) {
        const size_t n = out.size(), at = n ? random() % n : 0;
        switch (random() % 7) {
            case 0: if (n) out[at] ^= uint8_t(1 << random() % 8); break;
            case 1: if (n) out[at] = uint8_t(random()); break;
            case 2: if (n) out[at] = uint8_t(std::initializer_list<int>{0, 1, 127, 128, 255, 15, 16}.begin()[random() % 7]); break;
            case 3: if (n < LONGEST) out.insert(out.begin() + long(at), 1 + random() % 32, uint8_t(random())); break;
            case 4: if (n > 1) out.erase(out.begin() + long(at), out.begin() + long(std::min(n, at + 1 + random() % 32))); break;
            case 5: if (n) out[at] = uint8_t(out[at] + random() % 35 - 17); break;
            default: {
                const Bytes& other = pool[random() % pool.size()];
                if (!n || other.empty()) break;
                const size_t from = random() % other.size(), length = std::min({other.size() - from, n - at, size_t(1 + random() % 64)});
                std::copy_n(other.begin() + long(from), length, out.begin() + long(at));
            }
        }
    }
    return out;
}

}  // namespace

extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
    const auto here = uint32_t(reinterpret_cast<uintptr_t>(__builtin_return_address(0)) * 0x9e3779b1u >> 16);
    uint8_t& h = hits[(here ^ before) % MAP];
    if (h != 255) h++;
    before = here >> 1;
}

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const double seconds = std::atof(argv[1]);
    const uint64_t most = std::strtoull(argv[2], nullptr, 10);
    folder = argv[3];
    std::mt19937_64 random(argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 1);
    std::filesystem::create_directories(folder);
    std::vector<Bytes> pool;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        std::ifstream in(entry.path(), std::ios::binary);
        pool.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
    if (pool.empty()) pool = {Bytes(64), Bytes(16)};
    std::signal(SIGALRM, hung);
    std::signal(SIGABRT, aborted);
    __sanitizer_set_death_callback(died);
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
    uint64_t runs = 0;
    const auto run = [&](const Bytes& input) {
        current = input;
        alarm(HANG);
        before = 0;
        LLVMFuzzerTestOneInput(current.data(), current.size());
        runs++;
        return news();
    };
    for (const Bytes& input : std::vector<Bytes>(pool)) run(input);
    while ((!most || runs < most) && (!seconds || runs % 256 || elapsed() < seconds)) {
        Bytes input = mutated(pool, random);
        if (run(input)) {
            write(input, "kept-" + std::to_string(pool.size()));
            pool.push_back(std::move(input));
        }
    }
    const auto edges = std::count_if(seen, seen + MAP, [](uint8_t s) { return s != 0; });
    std::printf("{\"executions\": %llu, \"edges\": %ld, \"inputs\": %zu, \"seconds\": %.1f}\n", static_cast<unsigned long long>(runs), long(edges), pool.size(), elapsed());
}
