// Our few lines beside the reference's own op tests (its tests/test-backend-ops.cpp, compiled in from its source
// distribution): lists their cases, and runs chosen ones on an RPC server. Must not know what the server is.
//
//   conformance_driver        a case a line: number, op, whether ggml's CPU backend supports it, parameters (tabs between)
//   conformance_driver run    reads lines "ENDPOINT NUMBER NUMBER ..." and answers each with
//                                 @start NUMBER / what the test itself prints / @end NUMBER ok|fail|skip
//                             for every case, and at last "@done", or "@died NUMBER" when the client's process ended
//
// The reference client ends its whole process when a server refuses, so each line of cases is run in a fork.

#include <atomic>
#include <random>

// data that is random but the same in every run: each case runs in a thread of its own, where generators begin anew
namespace std {
struct chosen_seed {
    static inline atomic<unsigned> next{0};
    unsigned operator()() const { return next.fetch_add(0x9E3779B9u); }
};
}  // namespace std
#define random_device chosen_seed
#define main stock_main
#include "test-backend-ops.cpp"
#undef main
#undef random_device

#include "ggml-cpu.h"
#include "ggml-rpc.h"

#include <csignal>
#include <cstring>
#include <iostream>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

using Cases = std::vector<std::unique_ptr<test_case>>;

static ggml_backend_ptr open_cpu() {
    ggml_backend_ptr cpu(ggml_backend_cpu_init());
    GGML_ASSERT(cpu);
    ggml_backend_cpu_set_n_threads(cpu.get(), 2);
    ggml_backend_cpu_set_use_ref(cpu.get(), true);  // as the tests' own main does
    return cpu;
}

static void list(Cases & cases) {
    ggml_backend_ptr cpu = open_cpu();
    for (size_t i = 0; i < cases.size(); i++) {
        ggml_init_params params = { ggml_tensor_overhead() * 128 + ggml_graph_overhead(), NULL, true };
        ggml_context_ptr ctx(ggml_init(params)), weights(ggml_init(params));
        cases[i]->mode = MODE_SUPPORT;  // no sentinels
        cases[i]->gf = ggml_new_graph(ctx.get());
        ggml_tensor * out = cases[i]->build_graph(ctx.get(), weights.get());
        bool supported = true;
        for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            supported = supported && ggml_backend_supports_op(cpu.get(), t);
        }
        printf("%zu\t%s\t%d\t%s\n", i, cases[i]->op_desc(out).c_str(), supported, cases[i]->vars().c_str());
    }
}

// Tables that quantising needs take seconds for some types: made before the fork they are made once.
static void prepare(Cases & cases, const std::vector<size_t> & numbers) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const char * name = ggml_type_name(ggml_type(type));
        if (name && std::any_of(numbers.begin(), numbers.end(), [&](size_t n) {
                return cases[n]->vars().find(name) != std::string::npos;
            })) {
            ggml_quantize_init(ggml_type(type));
        }
    }
}

static void run_here(Cases & cases, const std::string & endpoint, const std::vector<size_t> & numbers, size_t * current) {
    ggml_backend_reg_t reg = ggml_backend_rpc_add_server(endpoint.c_str());
    GGML_ASSERT(reg && strncmp(ggml_backend_reg_name(reg), "RPC", 3) == 0);
    ggml_backend_ptr remote(ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), NULL));
    ggml_backend_ptr cpu = open_cpu();
    for (size_t number : numbers) {
        *current = number;
        printf("@start %zu\n", number);
        fflush(stdout);
        test_status_t status = test_status_t::FAIL;
        std::thread([&] {
            std::chosen_seed::next = unsigned(number) * 2654435761u;
            srand(unsigned(number));
            status = cases[number]->eval(remote.get(), cpu.get(), nullptr, nullptr);
        }).join();
        const char * word = status == test_status_t::OK ? "ok" : status == test_status_t::FAIL ? "fail" : "skip";
        printf("\n@end %zu %s\n", number, word);
        fflush(stdout);
    }
}

int main(int argc, char ** argv) {
    Cases cases = make_test_cases_eval();
    if (argc < 2 || strcmp(argv[1], "run") != 0) {
        list(cases);
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);  // the client then says what happened
    void * shared = mmap(NULL, sizeof(size_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    GGML_ASSERT(shared != MAP_FAILED);
    size_t * current = (size_t *) shared;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string endpoint;
        words >> endpoint;
        std::vector<size_t> numbers;
        for (size_t number; words >> number;) {
            GGML_ASSERT(number < cases.size());
            numbers.push_back(number);
        }
        prepare(cases, numbers);
        *current = numbers.empty() ? 0 : numbers[0];
        fflush(stdout);
        pid_t child = fork();
        GGML_ASSERT(child >= 0);
        if (child == 0) {
            run_here(cases, endpoint, numbers, current);
            fflush(stdout);
            _exit(0);
        }
        int code = 0;
        GGML_ASSERT(waitpid(child, &code, 0) == child);
        if (code == 0) {
            printf("\n@done\n");
        } else {
            printf("\n@died %zu\n", *current);
        }
        fflush(stdout);
    }
    return 0;
}
