// Work on ranges of items by some threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// work(first, last) on ranges of at most `step` items until all `count` are done. The caller is one of the threads; small work is its alone.
template <class Work>
void share(int64_t count, int64_t step, int threads, Work work) {
    std::atomic<int64_t> next{0};
    auto run = [&] {
        for (int64_t first; (first = next.fetch_add(step)) < count;) work(first, std::min(count, first + step));
    };
    std::vector<std::thread> others;
    const int64_t useful = std::min<int64_t>(threads, (count + step - 1) / step);
    try {
        for (int64_t i = 1; i < useful; i++) others.emplace_back(run);
    } catch (...) {  // as many as there may be
    }
    run();
    for (auto& thread : others) thread.join();
}
