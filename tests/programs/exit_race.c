/* SPDX-License-Identifier: Apache-2.0
 *
 * exit_race PROCESSES THREADS: each process ends when its threads, which were
 * held at a barrier, end all at once, each by itself. The leader's code is 7.
 * Prints how many children wait() saw end with 7.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_barrier_t barrier;

static void *last_act(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&barrier);
	syscall(SYS_exit, 7); /* this thread only; never returns */
	return NULL;
}

int main(int argc, char **argv)
{
	int processes = argc > 1 ? atoi(argv[1]) : 100, threads = argc > 2 ? atoi(argv[2]) : 4, seen = 0, status;

	for (int i = 0; i < processes; i++) {
		pid_t child = fork();

		if (child == 0) {
			pthread_barrier_init(&barrier, NULL, threads + 1);
			for (int j = 0; j < threads; j++) {
				pthread_t thread;

				if (pthread_create(&thread, NULL, last_act, NULL))
					_exit(1);
			}
			last_act(NULL);
		}
		if (waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7)
			seen++;
	}
	printf("%d\n", seen);
	return 0;
}
